"""Is every path right on a GPU: each verb on the CPU and on CUDA, from the same seeds.

    commands    small runs of every verb on both devices; their figures are compared loosely, since
                trainings drift apart (`FIGURES`, `DRIFT`), densities and shapes of tables exactly
    updates     one update, forward pass or sampling step of every system, compared tightly
    resume      a run that was stopped in a training and one that was not: equal to the last digit
    tests       those of the suite that need a GPU

TF32 is off and kernels are deterministic where there are such. What fails is a row with its
message, and the others go on. Without a GPU the second device is the suite's stand-in for one.

Both devices draw the same noise: what a flow draws on a GPU comes from the GPU's own generator,
which is another stream, and so another training; here it comes from the CPU's. `deploy` begins
first, because it compiles kernels: it did not end within 51 seconds beside the other cases.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FIGURES = 0.35  # absolute, and relative to the larger: what drifting trainings may differ by
# Changing the first weights by 1e-7 of themselves, on a CPU, moves the figures of these by at most
# 0.0002 (moons), 0.0018 (digits) and 0.0008 (diffusion) in 3 draws each; five times the largest
DRIFT = dict.fromkeys(("flow moons", "flow digits", "diffusion"), 0.01)
UPDATES = 1e-4  # relative, float32 without TF32
TAIL = 1500  # characters of a failure that are kept
# times; and the identity of a sweep's run, which holds the device: its point is compared
UNCOMPARED = ("seconds", "milliseconds", "seconds_per_sample", "evaluations", "run")

PRUNE = "prune --data digits --limit 300 --epochs 3 --cycles 2 --seeds 2 --dead-examples 200"
FLOW = (
    "--updates 40 --pairs 200 --pair-steps 4 --samples 200 --batch-size 32 --limit 300 --seed 0 "
    "--steps 1,2"
)
PROTEIN = (
    "protein --data {carry}/backbones.npz --preset tiny --lengths 12 --steps 4,3 --samples 3 "
    "--crop 12 --shortest 12 --epochs 1 --batch-size 4 --pairs 4 --pair-steps 3 "
    "--reflow-epochs 1 --seeds 1"
)
COMMANDS: dict[str, tuple[str, ...]] = {  # {run}: the first command's folder
    "prune mlp": (f"{PRUNE} --ap off,lite,pro,random --score magnitude,lamp",),
    "prune movement": (f"{PRUNE} --score movement --ap off,lite",),
    "prune cnn": (f"{PRUNE} --model cnn --ap off,lite --together 4 --rewind epoch:1",),
    "prune resnet20": (
        f"{PRUNE} --model resnet20 --ap off,lite,off_pro,pro --together 8 --learning-rate 0.02",
    ),
    "prune resnet20, no norm, bf16": (
        f"{PRUNE} --model resnet20 --norm none --learning-rate 0.02 --precision bf16 --together 4",
    ),
    "prune vit": (f"{PRUNE} --model vit --cycles 1 --ap off --together 4 --dead-threshold 0.01",),
    "prune one by one": (f"{PRUNE} --model cnn --score snip,lookahead --rewind lr",),
    "deploy": (f"{PRUNE} --model cnn --cycles 2 --target 0.2 --seeds 1 --deploy",),
    "binarize": (
        "binarize --data digits --model cnn --limit 300 --epochs 2 --seeds 2 "
        "--estimator float,ste,ede,reste --pack",
    ),
    "flow moons": (
        f"flow --data moons --source gaussians8 --recipe 2rf,2rf++ --reflow-updates 40 "
        f"--rounds 2 --distil {FLOW}",
        "sample {run} --count 8 --steps 2 --out {run}-samples",
    ),
    "flow digits": (
        f"flow --data digits --recipe 2rf++ --reflow-updates 10 {FLOW} --updates 20 --pairs 60",
        "sample {run} --count 4 --steps 2 --out {run}-samples",
    ),
    "diffusion": (
        f"diffusion --data moons --phases 2 --rectify-updates 40 {FLOW}",
        "sample {run} --count 8 --out {run}-samples",
    ),
    "protein": (PROTEIN, "sample {run} --count 2 --out {run}-samples"),
    "scatter": (
        "scatter --networks ridgelet_modulus,wavelet_modulus --grid 32 --steps 3 --limit 100 "
        "--orientations 2 --seeds 1",
    ),
    "sweep": ('sweep prune --grid "seed=0..1" --limit 200 --epochs 2 --cycles 1 --workers 2',),
}
NEEDS = {"protein": ("gemmi", "biotite")}  # larger than what a call may carry beside CIFAR-10
TESTS = (
    "tests/gpu/test_capture.py",
    "tests/data/test_batches.py::test_a_gpu_sees_the_same_data",
    "tests/scattering/test_network.py::test_a_gpu_finds_the_same",
    "tests/scattering/test_scattering2d.py::test_a_gpu_finds_the_same",
    "tests/pruning/test_semi_structured.py::test_the_kernels_compute_the_same",
)
SAVES = 5  # of checkpoints before the run of `resume` is stopped


@dataclass
class Row:
    """What came of a case.

    Attributes:
        name: of it.
        ok: whether all is as it must be.
        message: in a few words.
        seconds: it took.
        tail: of what was said, where it failed.
        figures: the largest difference by field.
    """

    name: str
    ok: bool
    message: str
    seconds: float = 0.0
    tail: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class Failed(Exception):
    """A case has failed; the second argument is what was said."""


# ---- processes: `rectified` with the settings of this comparison


def child(arguments: Sequence[str]) -> int:
    """Be `rectified`, without TF32 and deterministic; `GPU_STOP` stops it after so many saves."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    from rectified import cli, runs
    from rectified.training import loop

    _draw_on_the_cpu()
    stop = int(os.environ.get("GPU_STOP", "0"))
    if stop:
        loop._SAVE_EVERY_SECONDS = -1.0
        save = runs.FileStore.save

        def counted(self: Any, state: Any, /) -> None:
            nonlocal stop
            save(self, state)
            stop -= 1
            if not stop:
                raise KeyboardInterrupt

        runs.FileStore.save = counted  # type: ignore[method-assign]
    if "GPU_PRETEND" in os.environ:
        from tests.gpu.pretend import Pretend

        from rectified.training import capture

        capture.as_graph = lambda steps: steps  # it has no graphs
        with Pretend():
            return cli.main(arguments)
    return cli.main(arguments)


def _draw_on_the_cpu() -> None:
    """Let normal noise without a generator of its own be the same on every device."""
    import torch

    randn = torch.randn

    def drawn(*size: Any, device: Any = None, generator: Any = None, **given: Any) -> Any:
        if generator is not None:
            return randn(*size, device=device, generator=generator, **given)
        return randn(*size, **given).to(device or "cpu")

    torch.randn = drawn


@dataclass(frozen=True)
class Machine:
    """Where things are run.

    Attributes:
        work: a folder for runs.
        carry: what was packed.
        deadline: on the monotonic clock.
        is_real: whether there is a GPU.
    """

    work: Path
    carry: Path
    deadline: float
    is_real: bool

    def rectified(self, words: Sequence[str], device: str, **more: str) -> None:
        """Run a command on a device."""
        pretended = {"GPU_PRETEND": "1"} if device == "cuda" and not self.is_real else {}
        code = "import sys; from benchmarks.gpu.correct import child; sys.exit(child(sys.argv[1:]))"
        self.process([sys.executable, "-c", code, *words], (0,), **pretended, **more)

    def process(self, words: Sequence[str], codes: Sequence[int], **more: str) -> str:
        """Run a process until it ends or the time is up; returns what it says."""
        own = {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        own |= {"NVIDIA_TF32_OVERRIDE": "0", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
        found = subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, **own, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=max(1.0, self.deadline - time.monotonic()),
            check=False,
        )
        said = found.stdout.decode(errors="replace")
        if found.returncode not in codes:
            raise Failed(f"exit code {found.returncode}: {_last(said)}", said)
        return said


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing was said"


# ---- cases


def commands(name: str, machine: Machine) -> Row:
    """A verb on both devices at once."""
    lacking = [package for package in NEEDS.get(name, ()) if find_spec(package) is None]
    if lacking:
        return Row(name, True, f"left out: {lacking[0]} is not installed")
    if name == "sweep" and not machine.is_real:
        return Row(name, True, "left out: its workers are processes without the stand-in")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda device: _results(name, device, machine), ("cpu", "cuda")))
    figures = differences(*found)
    worst = max(figures, key=lambda key: figures[key], default="")
    return Row(
        name,
        all(value <= DRIFT.get(name, FIGURES) for value in figures.values()),
        f"{len(found[0])} rows, most apart: {worst} {figures.get(worst, 0.0):.3g}",
        figures=figures,
    )


def _results(name: str, device: str, machine: Machine) -> list[dict[str, Any]]:
    folder = machine.work / "".join(c if c.isalnum() else "-" for c in name) / device
    for position, command in enumerate(COMMANDS[name]):
        words = _words(command.format(run=folder, carry=machine.carry))
        if position == 0:
            words += ["--out", str(folder), "--quiet"]
        words += ["--device", device]
        machine.rectified(words, device)
    return json.loads((folder / "results.json").read_text())["rows"]


def _words(command: str) -> list[str]:
    import shlex

    return shlex.split(command)


def differences(
    one: Sequence[Mapping[str, Any]], two: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """How far apart two tables' numbers are at most, by field: absolute or relative, the smaller.

    Raises:
        Failed: if the tables differ in what is counted or named, or a number is not finite.
    """
    if len(one) != len(two):
        raise Failed(f"{len(one)} rows on the CPU, {len(two)} on the GPU", "")
    found: dict[str, float] = {}
    for left, right in zip(one, two, strict=True):
        if left.keys() != right.keys():
            raise Failed(f"fields differ: {sorted(left.keys() ^ right.keys())}", "")
        for name, value in left.items():
            if name in UNCOMPARED:
                continue
            if not isinstance(value, float) or name == "density":
                if value != right[name]:
                    raise Failed(f"{name} is {value!r} on the CPU, {right[name]!r} on the GPU", "")
                continue
            other = right[name]
            if not isinstance(other, float | int) or not math.isfinite(other):
                raise Failed(f"{name} is {value!r} on the CPU, {other!r} on the GPU", "")
            apart = abs(value - other)
            scale = max(abs(value), abs(other))
            found[name] = max(found.get(name, 0.0), min(apart, apart / scale if scale else 0.0))
    return found


def resume(_name: str, machine: Machine) -> Row:
    """A study that is stopped in a training and goes on finds what an undisturbed one finds."""
    words = _words(f"{PRUNE} --model resnet20 --ap off,lite --together 4 --learning-rate 0.02")
    whole, parts = machine.work / "whole", machine.work / "parts"

    def undisturbed() -> None:
        machine.rectified([*words, "--device", "cuda", "--quiet", "--out", str(whole)], "cuda")

    def stopped() -> None:
        try:
            machine.rectified(
                [*words, "--device", "cuda", "--quiet", "--out", str(parts)],
                "cuda",
                GPU_STOP=str(SAVES),
            )
        except Failed as failure:
            if "exit code 130" not in str(failure):
                raise
        else:
            raise Failed(f"was not stopped by {SAVES} saves", "")
        machine.rectified(["prune", "--resume", str(parts), "--quiet"], "cuda")

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(undisturbed), pool.submit(stopped)]:
            future.result()
    one, two = (
        json.loads((folder / "results.json").read_text())["rows"] for folder in (whole, parts)
    )
    figures = differences(one, two)
    worst = max(figures.values(), default=0.0)
    return Row("resume", worst == 0.0, f"largest difference {worst:.3g}", figures=figures)


def tests(_name: str, machine: Machine) -> Row:
    """Those that need a GPU."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfs", *TESTS]
    said = machine.process(words, (0,))
    return Row("tests", True, _last(said), tail=said[-TAIL:])


def updates(_name: str, machine: Machine) -> Row:
    """One update of every system, a process for each device."""
    from benchmarks.gpu.updates import apart

    def made(device: str) -> Path:
        path = machine.work / f"updates-{device}.pt"
        words = [sys.executable, "-m", "benchmarks.gpu.updates", "--device", device]
        pretended = {} if machine.is_real else {"GPU_PRETEND": "1"}
        machine.process([*words, "--out", str(path)], (0,), **pretended)
        return path

    with ThreadPoolExecutor(2) as pool:
        found = apart(*pool.map(made, ("cpu", "cuda")))
    figures = {name: gap for name, (gap, _) in found.items() if gap == gap}
    bad = {
        name: failure or f"{gap:.2g}"
        for name, (gap, failure) in found.items()
        if not gap <= UPDATES
    }
    message = f"{len(found)} updates, most apart {max(figures.values(), default=0.0):.2g}"
    if bad:
        message = f"{len(bad)} of {len(found)} differ: {', '.join(bad)}"
    return Row("updates", not bad, message, tail=json.dumps(bad)[: 3 * TAIL], figures=figures)


Case = Callable[[str, Machine], Row]


def cases() -> Iterator[tuple[str, Case]]:
    """All, those that take longest first."""
    yield "deploy", commands
    yield "updates", updates
    yield "resume", resume
    yield "tests", tests
    for name in sorted(COMMANDS, key=lambda name: -len(COMMANDS[name])):
        if name != "deploy":
            yield name, commands


def attempt(case: tuple[str, Case], machine: Machine, limit: float) -> Row:
    """Run a case; whatever happens becomes a row."""
    name, run = case
    began = time.monotonic()
    limited = Machine(
        machine.work, machine.carry, min(machine.deadline, began + limit), machine.is_real
    )
    try:
        if machine.deadline - began < 2:
            raise Failed("no time was left", "")
        row = run(name, limited)
    except Failed as failure:
        row = Row(name, False, str(failure.args[0]), tail=str(failure.args[1])[-TAIL:])
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
        row = Row(
            name, False, f"took longer than {time.monotonic() - began:.0f} s", tail=said[-TAIL:]
        )
    except Exception as error:  # one that fails must not cost the others
        row = Row(name, False, repr(error)[:300], tail=traceback.format_exc()[-TAIL:])
    row.seconds = round(time.monotonic() - began, 1)
    print(
        f"{'ok  ' if row.ok else 'FAIL'} {row.name:30} {row.seconds:5.1f} s  {row.message}",
        flush=True,
    )
    return row


def main(arguments: list[str] | None = None) -> int:
    """Run all cases; returns how many failed."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--carry", type=Path, default=Path(".carry"), help="what was packed")
    parser.add_argument("--seconds", type=float, default=88, help="for all")
    parser.add_argument("--limit", type=float, default=80, help="seconds for one case")
    parser.add_argument("--workers", type=int, default=max(2, (os.cpu_count() or 2) // 2))
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    wanted = [case for case in cases() if given.only in case[0]]
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(given.workers) as pool:
        machine = Machine(
            Path(work),
            given.carry.resolve(),
            time.monotonic() + given.seconds,
            torch.cuda.is_available(),
        )
        rows = list(pool.map(lambda case: attempt(case, machine, given.limit), wanted))
    if given.out is not None:
        device = torch.cuda.get_device_name() if machine.is_real else "pretended"
        found = {"device": device, "torch": torch.__version__, "rows": [asdict(r) for r in rows]}
        given.out.write_text(json.dumps(found, indent=1))
    failed = [row for row in rows if not row.ok]
    print(f"\n{len(rows) - len(failed)} of {len(rows)} ok")
    for row in failed:
        print(f"\n--- {row.name}: {row.message}\n{row.tail}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
