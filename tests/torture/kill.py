"""What can happen to a run while it runs: killed, no room left, a clock that jumps, company.

    python -m tests.torture.kill --kills 20                 # every verb
    python -m tests.torture.kill --verb scatter --kills 100 --seed 7

Each verb is a small command. It runs once undisturbed; then it is killed (SIGKILL) at random
moments and resumed until it ends, its folder moved now and then; what it found must be equal, to
the last digit. Runs are forked from one process that has everything imported, so that the moments
fall into the work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rectified import cli, training
from rectified.runs import read_results

VERBS = {  # a verb joins by a row: something of a few seconds
    "prune": "prune --limit 200 --epochs 3 --cycles 2 --seeds 2 --ap off,pro --score movement,lamp "
    "--rewind epoch:1",
    "cnn": "prune --model cnn --together 1 --limit 200 --epochs 3 --cycles 1 --seeds 1 --ap lite",
    "demo": "demo --limit 200 --epochs 2 --cycles 2 --seeds 2",
    "scatter": "scatter --networks ridgelet_modulus --grid 32 --steps 3 --limit 60 "
    "--orientations 2 --seeds 2",
    "flow": "flow --data moons --recipe 2rf++ --distil --updates 300 --reflow-updates 300 "
    "--pairs 20000 --pair-steps 4 --samples 100 --limit 500 --seeds 2 --steps 1,2",
    "diffusion": "diffusion --data moons --phases 2 --updates 300 --rectify-updates 300 "
    "--pairs 20000 --pair-steps 4 --samples 100 --limit 500 --seeds 1 --steps 1,2",
    "sweep": 'sweep prune --grid "seed=0..3" --limit 200 --epochs 2 --cycles 1 --workers 2',
}
FORK = multiprocessing.get_context("fork")
LIVES = 200  # of one run, at most


def child(arguments: list[str], folder: Path, jump: int | None, saves: float) -> None:
    """Run a command in a forked process; its words go to files."""
    for number in (1, 2):
        os.dup2(os.open(folder / f"child.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    training._SAVE_EVERY_SECONDS = saves
    if jump is not None:
        unsteady_clock(jump)
    code = cli.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def unsteady_clock(seed: int) -> None:
    """The time of day leaps by up to a year, in both directions."""
    chance, real = random.Random(seed), time.time
    time.time = lambda: real() + chance.uniform(-3e7, 3e7)


def start(
    words: str, folder: Path, *, jump: int | None = None, saves: float = -1.0
) -> multiprocessing.process.BaseProcess:
    """Begin a command; `saves` is how often an unfinished training is kept, in seconds."""
    arguments = shlex.split(words)
    process = FORK.Process(target=child, args=(arguments, folder, jump, saves))
    process.start()
    return process


def ended(process: multiprocessing.process.BaseProcess, seconds: float = 300.0) -> int | None:
    """The exit code, or None if it has not ended by then."""
    process.join(seconds)
    return process.exitcode


def numbers(path: Path) -> dict[str, Any]:
    """All that a run found, but how long it took, and where it lay."""
    found = read_results(path)

    def timeless(row: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if not key.startswith("seconds")}

    return {key: [timeless(row) for row in found[key]] for key in ("rows", "summary")}


def undisturbed(verb: str, folder: Path) -> tuple[dict[str, Any], float]:
    """What a run finds if nothing happens, and the seconds that takes."""
    started = time.monotonic()
    code = ended(start(f"{VERBS[verb]} --quiet --out {folder / 'calm'}", folder))
    if code != 0:
        raise RuntimeError(f"{verb} ended with {code}: {(folder / 'child.2').read_text()}")
    return numbers(folder / "calm"), time.monotonic() - started


def killed(verb: str, kills: int, seed: int) -> dict[str, Any]:
    """So many kills, over as many runs as that takes; the numbers of each are compared."""
    chance = random.Random(f"{verb} {seed}")
    found = {"verb": verb, "seed": seed, "kills": 0, "runs": 0, "moves": 0, "differences": 0}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wanted, seconds = undisturbed(verb, folder)
        name = VERBS[verb].split()[0]
        while found["kills"] < kills:
            path = folder / f"run{found['runs']}"
            words = f"{VERBS[verb]} --quiet --out {path}"
            for _ in range(LIVES):
                process = start(words, folder, saves=chance.choice([-1.0, 20.0]))
                left = chance.uniform(0.0, seconds) if found["kills"] < kills else 300.0
                if ended(process, left) is not None:
                    break
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
                found["kills"] += 1
                if (path / "results.json").exists():  # killed with its work done
                    break
                if (path / "config.yaml").exists():
                    if chance.random() < 0.3:
                        path = path.rename(folder / f"moved{found['moves']}")
                        found["moves"] += 1
                    words = f"{name} --resume {path} --quiet"
            found["runs"] += 1
            if not (path / "results.json").exists():
                raise RuntimeError(f"{verb} did not end: {(folder / 'child.2').read_text()}")
            found["differences"] += numbers(path) != wanted
    return found


def jumping_clock(verb: str, seed: int) -> dict[str, Any]:
    """A run whose time of day leaps about."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wanted, _ = undisturbed(verb, folder)
        code = ended(start(f"{VERBS[verb]} --quiet --out {folder / 'run'}", folder, jump=seed))
        equal = code == 0 and numbers(folder / "run") == wanted
    return {"verb": verb, "exit_code": code, "differences": int(not equal)}


def two_at_once(verb: str) -> dict[str, Any]:
    """A second run in the folder of one that is under way, and what becomes of the first."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wanted, _ = undisturbed(verb, folder)
        path, other = folder / "run", folder / "other"
        other.mkdir()
        first = start(f"{VERBS[verb]} --quiet --out {path}", folder)
        while not (path / "metrics.jsonl").exists() and first.is_alive():
            time.sleep(0.005)
        name = VERBS[verb].split()[0]
        codes = [
            ended(start(words, other))
            for words in (
                f"{name} --resume {path} --quiet",
                f"{VERBS[verb]} --out {path} --quiet",
            )
        ]
        said = (other / "child.2").read_text()
        equal = ended(first) == 0 and numbers(path) == wanted
    refused = codes == [2, 2] and said.count("\n") == 1
    return {"verb": verb, "refused": refused, "said": said.strip(), "differences": int(not equal)}


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of that size.

    Raises:
        PermissionError: without the right to mount one.
    """
    path = folder / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("a small disk needs the right to mount a tmpfs (root)")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def full_disk(verb: str, tries: int, seed: int) -> dict[str, Any]:
    """Disks that fill up at some point; then there is more room, and the run goes on."""
    chance = random.Random(f"{verb} {seed}")
    found: dict[str, Any] = {"verb": verb, "tries": tries, "full": 0, "untold": 0, "differences": 0}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wanted, _ = undisturbed(verb, folder)
        needed = sum(f.stat().st_size for f in (folder / "calm").rglob("*") if f.is_file()) // 1024
        for number in range(tries):
            room = folder / f"try{number}"
            room.mkdir()
            with small_disk(room, chance.randint(8, max(16, needed))) as disk:
                code = ended(start(f"{VERBS[verb]} --quiet --out {disk / 'run'}", folder))
                said = (folder / "child.2").read_text()
                if code:
                    found["full"] += 1
                    found["untold"] += code != 2 or "full" not in said or said.count("\n") != 1
                    grow = ["mount", "-o", "remount,size=200m", str(disk)]
                    subprocess.run(grow, check=True)
                    begun = (disk / "run" / "config.yaml").exists()
                    again = f"{VERBS[verb]} --out {disk / 'run'} --quiet"
                    name = VERBS[verb].split()[0]
                    again = f"{name} --resume {disk / 'run'} --quiet" if begun else again
                    code = ended(start(again, folder))
                same = code == 0 and numbers(disk / "run") == wanted
                found["differences"] += not same
    return found


def main() -> int:
    """Returns the number of differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verb", choices=list(VERBS), action="append")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, list[dict[str, Any]]] = {}

    def told(kind: str, found: dict[str, Any]) -> None:
        report.setdefault(kind, []).append(found)
        print(kind, json.dumps(found), flush=True)

    for verb in options.verb or list(VERBS):
        told("killed", killed(verb, options.kills, options.seed))
        told("clock", jumping_clock(verb, options.seed))
        told("two at once", two_at_once(verb))
        if verb != "sweep":  # its workers have processes of their own, and so messages
            try:
                told("full disk", full_disk(verb, max(1, options.kills // 2), options.seed))
            except PermissionError as error:
                print(f"full disk: skipped, {error}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return sum(one["differences"] for found in report.values() for one in found)


if __name__ == "__main__":
    sys.exit(main())
