"""What can happen to a run while it runs: killed, no room left, a clock that jumps, company.

    python -m tests.torture.kill --kills 20                 # every verb
    python -m tests.torture.kill --verb scatter --kills 100 --seed 7

Each verb is a small command. It runs once undisturbed; then it is killed (SIGKILL) at random
moments and resumed until it ends, its folder moved now and then; what it found must be equal, to
the last digit, and so must the weights that it wrote. Runs are forked from one process that has
everything imported, so that the moments fall into the work.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from rectified import cli
from rectified.jobs import TOOLS, job_of, tool_of
from rectified.runs import read_results
from rectified.training import loop
from tests.holding import Hold, held
from tests.torture import material


@dataclass(frozen=True)
class Row:
    """A command to torture.

    Attributes:
        words: something of a few seconds; its first word is the verb.
        needs: packages that an extra installs.
        tells: whether a disk that is full is told in its own words: a sweep's workers have
            processes, and so messages, of their own.
    """

    words: str
    needs: tuple[str, ...] = ()
    tells: bool = True

    @property
    def verb(self) -> str:
        """What it runs, and resumes."""
        return self.words.split()[0]


ROWS = {  # every verb of the registry has one
    "prune": Row(
        "prune --limit 200 --epochs 3 --cycles 2 --seeds 2 --ap off,pro --score movement,lamp "
        "--rewind epoch:1"
    ),
    "cnn": Row(
        "prune --model cnn --together 1 --limit 200 --epochs 3 --cycles 1 --seeds 1 --ap lite"
    ),
    "demo": Row("demo --limit 200 --epochs 2 --cycles 2 --seeds 2"),
    "binarize": Row(
        "binarize --model mlp --limit 200 --epochs 3 --seeds 2 --estimator ste,reste --pack",
        needs=("numba",),
    ),
    "flow": Row(
        "flow --data moons --source gaussians8 --recipe 2rf,2rf++ --rounds 3 --distil "
        "--updates 100 --reflow-updates 100 --pairs 20000 --pair-steps 4 --samples 50 --limit 500 "
        "--seed 0 --steps 1,2"
    ),
    "images": Row(
        "flow --data digits --limit 100 --recipe 2rf++ --inverted 0.2 --updates 8 "
        "--reflow-updates 8 --pairs 60 --pair-steps 2 --samples 20 --batch-size 16 --seed 0 "
        "--steps 1,2"
    ),
    "diffusion": Row(
        "diffusion --data moons --phases 2 --updates 100 --rectify-updates 100 "
        "--pairs 20000 --pair-steps 4 --samples 50 --limit 500 --seed 0 --steps 1,2"
    ),
    "pipeline": Row(
        "diffusion --pipeline {pipeline} --pairs 130 --pair-steps 2 --rectify-updates 30 "
        "--batch-size 8 --samples 4 --seeds 2 --steps 1,2",
        needs=("diffusers", "transformers"),
    ),
    "protein": Row(
        "protein --data {chains} --lengths 12 --steps 4,3 --samples 3 --crop 12 --shortest 12 "
        "--epochs 3 --batch-size 2 --pairs 4 --pair-steps 3 --reflow-epochs 2 --seeds 2",
        needs=("gemmi", "biotite"),
    ),
    "scatter": Row(
        "scatter --networks ridgelet_modulus --grid 32 --steps 3 --limit 60 "
        "--orientations 2 --seeds 2"
    ),
    "sweep": Row(
        'sweep prune --grid "seed=0..3" --limit 200 --epochs 2 --cycles 1 --workers 2', tells=False
    ),
}
FORK = multiprocessing.get_context("fork")
LIVES = 200  # of one run, at most
PATIENCE = 900.0  # seconds: whoever takes as long, on whatever machine, hangs
NOTHING = "(nothing)"  # what one run has and the other has not, which is no None
PLACES = 5  # at which a run differs, told of each run


def child(
    arguments: list[str], folder: Path, jump: int | None, saves: float, hold: Hold | None
) -> None:
    """Run a command in a forked process; its words go to files."""
    for number in (1, 2):
        os.dup2(os.open(folder / f"child.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    loop._SAVE_EVERY_SECONDS = saves
    if jump is not None:
        unsteady_clock(jump)
    if hold is not None:
        hold.listen()
    is_small = material.small_proteins() if arguments[0] == "protein" else contextlib.nullcontext()
    with is_small:
        code = cli.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def unsteady_clock(seed: int) -> None:
    """The time of day leaps by up to a year, in both directions."""
    chance, real = random.Random(seed), time.time
    time.time = lambda: real() + chance.uniform(-3e7, 3e7)


def start(
    words: str,
    folder: Path,
    *,
    jump: int | None = None,
    saves: float = -1.0,
    hold: Hold | None = None,
) -> multiprocessing.process.BaseProcess:
    """Begin a command.

    Args:
        words: the command.
        folder: where what it says goes.
        jump: seed of a time of day that leaps about.
        saves: how often an unfinished training is kept, in seconds.
        hold: where it waits.
    """
    arguments = material.split(words)
    tool_of(arguments[0]) if arguments[0] in TOOLS else job_of(arguments[0])  # imports it
    process = FORK.Process(target=child, args=(arguments, folder, jump, saves, hold))
    process.start()
    return process


def ended(process: multiprocessing.process.BaseProcess, seconds: float = PATIENCE) -> int | None:
    """The exit code, or None if it has not ended by then."""
    process.join(seconds)
    return process.exitcode


@dataclass(frozen=True)
class Calm:
    """A run that nothing happened to.

    Attributes:
        found: its numbers.
        seconds: that it took.
        kilobytes: of its folder.
    """

    found: dict[str, Any]
    seconds: float
    kilobytes: int


def numbers(path: Path) -> dict[str, Any]:
    """All that a run found, but how long it took and where it lay; and its tensors."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(entry) for key, entry in value.items() if not _of_time(key)}
        return [timeless(entry) for entry in value] if isinstance(value, list) else value

    found = {key: v for key, v in read_results(path).items() if key != "environment"}
    files = [file for file in sorted(path.rglob("*")) if file.suffix in (".safetensors", ".pdb")]
    return {**timeless(found), "files": {str(f.relative_to(path)): _digest(f) for f in files}}


def apart(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Places at which two runs' numbers differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*found, *(key for key in wanted if key not in found)]:
            yield from apart(found.get(key, NOTHING), wanted.get(key, NOTHING), f"{where}/{key}")
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for number, pair in enumerate(zip(found, wanted, strict=True)):
            yield from apart(*pair, f"{where}/{number}")
    elif found != wanted:
        yield f"{where}: {str(found)[:60]} for {str(wanted)[:60]}"


def unlike(path: Path, wanted: dict[str, Any]) -> list[str]:
    """The first places at which a run's numbers differ from those wanted."""
    return list(islice(apart(numbers(path), wanted), PLACES))


def _of_time(key: str) -> bool:
    return key.startswith(("seconds", "milliseconds"))


def _digest(file: Path) -> str:
    """Of what it holds: safetensors writes its header in an order that changes."""
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        length = int.from_bytes(content[:8], "little")
        header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True)
        content = header.encode() + content[8 + length :]
    return hashlib.sha256(content).hexdigest()


def undisturbed(name: str) -> Calm:
    """What a run finds if nothing happens."""
    return _undisturbed(ROWS[name].words)


@cache
def _undisturbed(words: str) -> Calm:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = folder / "calm"
        started = time.monotonic()
        code = ended(start(f"{words} --quiet --out {path}", folder))
        if code != 0:
            raise RuntimeError(f"{words} ended with {code}: {(folder / 'child.2').read_text()}")
        seconds = time.monotonic() - started
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) // 1024
        return Calm(numbers(path), seconds, size)


def killed(name: str, kills: int, seed: int) -> dict[str, Any]:
    """So many kills, over as many runs as that takes; the numbers of each are compared."""
    chance, calm, row = random.Random(f"{name} {seed}"), undisturbed(name), ROWS[name]
    found: dict[str, Any] = {"verb": name, "seed": seed, "kills": 0, "runs": 0, "moves": 0}
    found |= {"differences": 0, "places": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        while found["kills"] < kills:
            path = folder / f"run{found['runs']}"
            words = f"{row.words} --quiet --out {path}"
            for _ in range(LIVES):
                process = start(words, folder, saves=chance.choice([-1.0, 20.0]))
                left = chance.uniform(0.0, calm.seconds) if found["kills"] < kills else PATIENCE
                if ended(process, left) is not None:
                    break
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
                found["kills"] += 1
                if (path / "results.json").exists():  # killed with its work done
                    ended(
                        start(f"{row.verb} --resume {path} --quiet", folder)
                    )  # refused; tidies up
                    break
                if (path / "config.yaml").exists():
                    if chance.random() < 0.3:
                        path = path.rename(folder / f"moved{found['moves']}")
                        found["moves"] += 1
                    words = f"{row.verb} --resume {path} --quiet"
            found["runs"] += 1
            if not (path / "results.json").exists():
                raise RuntimeError(f"{name} did not end: {(folder / 'child.2').read_text()}")
            found["places"] += (places := unlike(path, calm.found))
            found["differences"] += bool(places)
    return found


def jumping_clock(name: str, seed: int) -> dict[str, Any]:
    """A run whose time of day leaps about."""
    wanted = undisturbed(name).found
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        code = ended(start(f"{ROWS[name].words} --quiet --out {folder / 'run'}", folder, jump=seed))
        places = unlike(folder / "run", wanted) if code == 0 else ["it failed"]
    return {"verb": name, "exit_code": code, "differences": int(bool(places)), "places": places}


def two_at_once(name: str) -> dict[str, Any]:
    """A second run in the folder of one that is under way, and what becomes of the first."""
    wanted, row = undisturbed(name).found, ROWS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path, other = folder / "run", folder / "other"
        other.mkdir()
        with held(str(path / "results.json")) as hold:
            first = start(f"{row.words} --quiet --out {path}", folder, hold=hold)
            hold.wait(first)
            codes = [
                ended(start(words, other))
                for words in (
                    f"{row.verb} --resume {path} --quiet",
                    f"{row.words} --out {path} --quiet",
                )
            ]
        said = (other / "child.2").read_text()
        places = unlike(path, wanted) if ended(first) == 0 else ["the first failed"]
    refused = codes == [2, 2] and said.count("\n") == 1
    found = {"verb": name, "refused": refused, "said": said.strip()}
    return found | {"differences": int(bool(places)), "places": places}


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


def full_disk(name: str, tries: int, seed: int) -> dict[str, Any]:
    """Disks that fill up at some point; then there is more room, and the run goes on."""
    chance, row = random.Random(f"{name} {seed}"), ROWS[name]
    found: dict[str, Any] = {"verb": name, "tries": tries, "full": 0, "untold": 0}
    found |= {"differences": 0, "places": []}
    calm = undisturbed(name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number in range(tries):
            room = folder / f"try{number}"
            room.mkdir()
            with small_disk(room, chance.randint(8, max(16, calm.kilobytes))) as disk:
                code = ended(start(f"{row.words} --quiet --out {disk / 'run'}", folder))
                said = (folder / "child.2").read_text()
                if code:
                    found["full"] += 1
                    found["untold"] += code != 2 or "full" not in said or said.count("\n") != 1
                    grow = ["mount", "-o", "remount,size=200m", str(disk)]
                    subprocess.run(grow, check=True)
                    begun = (disk / "run" / "config.yaml").exists()
                    again = f"{row.words} --out {disk / 'run'} --quiet"
                    again = f"{row.verb} --resume {disk / 'run'} --quiet" if begun else again
                    code = ended(start(again, folder))
                places = unlike(disk / "run", calm.found) if code == 0 else ["it failed"]
                found["differences"] += bool(places)
                found["places"] += places
    return found


def main() -> int:
    """Returns the number of differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verb", choices=list(ROWS), action="append")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, list[dict[str, Any]]] = {}

    def told(kind: str, found: dict[str, Any]) -> None:
        report.setdefault(kind, []).append(found)
        print(kind, json.dumps(found), flush=True)

    for name in options.verb or list(ROWS):
        if lacking := material.lacking(*ROWS[name].needs):
            print(f"{name}: skipped, it needs {', '.join(lacking)}")
            continue
        told("killed", killed(name, options.kills, options.seed))
        told("clock", jumping_clock(name, options.seed))
        told("two at once", two_at_once(name))
        if ROWS[name].tells:
            try:
                told("full disk", full_disk(name, max(1, options.kills // 2), options.seed))
            except PermissionError as error:
                print(f"full disk: skipped, {error}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return sum(one["differences"] for found in report.values() for one in found)


if __name__ == "__main__":
    sys.exit(main())
