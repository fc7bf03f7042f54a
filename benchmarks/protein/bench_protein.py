"""The fast evaluation of the published network against a straightforward one.

Both have the same weights (random; zero layers made non-zero) and see the same frames, in one
process and in turns; a side's time is its smallest over the rounds, in CPU seconds of one thread.
Memory is what a process of its own needs at most beyond what it holds before the forward pass.

    OMP_NUM_THREADS=1 python -m benchmarks protein
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.protein.straightforward import forward
from rectified.protein import Frames, prior, sized
from rectified.protein.model import FlowModel
from rectified.timing import interleaved

LENGTHS = (64, 128, 256)
TARGETS = {64: 1.6, 128: 1.9, 256: 2.4}
HALF_TARGET = 3.4  # at 128 residues


def network() -> FlowModel:
    """The published network with random weights, none of them zero."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = sized("reqflow").eval()
    for parameter in model.parameters():
        if not parameter.detach().any():
            parameter.data = 0.03 * torch.randn(parameter.shape, generator=generator)
    return model


def sides(model: FlowModel, frames: Frames) -> dict[str, Callable[[], Frames]]:
    """What is compared."""
    t = torch.full((len(frames),), 0.5)
    previous = frames.translations * 0.9

    def fast(precision: torch.dtype) -> Frames:
        model.pair_precision = precision
        made: Frames = model(frames, t, previous=previous)
        model.pair_precision = torch.float32
        return made

    return {
        "straightforward": lambda: forward(model, frames, t, previous=previous),
        "ours": lambda: fast(torch.float32),
        "ours_bf16_pairs": lambda: fast(torch.bfloat16),
    }


@torch.no_grad()
def compare(model: FlowModel, length: int, batch: int, rounds: int) -> dict[str, Any]:
    """Smallest times over interleaved rounds, ratios, and how far results differ."""
    frames = prior(batch, length, generator=torch.Generator().manual_seed(length))
    calls = sides(model, frames)
    found = {name: call() for name, call in calls.items()}
    times = interleaved(calls, rounds=rounds, clock=time.process_time)
    row: dict[str, Any] = {"residues": length, "batch": batch, "rounds": rounds}
    exact = found["straightforward"]
    for name in calls:
        row[f"cpu_seconds_{name}"] = min(times[name])
        row[f"ratio_{name}"] = min(times["straightforward"]) / min(times[name])
        off = found[name].translations - exact.translations
        row[f"largest_angstrom_{name}"] = off.abs().max().item()
        row[f"rms_angstrom_{name}"] = off.square().sum(-1).mean().sqrt().item()
        turned = found[name].matrices() - exact.matrices()
        row[f"largest_matrix_{name}"] = turned.abs().max().item()
    return row


@torch.no_grad()
def extra_memory(name: str, length: int) -> float:
    """Peak memory of a forward pass beyond that before it, MB; for a process of its own."""
    frames = prior(1, length, generator=torch.Generator().manual_seed(0))
    call = sides(network(), frames)[name]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _peak()
    call()
    return (_peak() - before) / 1024


def _peak() -> int:
    """Most memory since the last reset, kB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--memory", nargs=2, metavar=("SIDE", "LENGTH"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(extra_memory(options.memory[0], int(options.memory[1])))
        return
    model = network()
    rows = [compare(model, length, 1, options.rounds) for length in options.lengths]
    rows.append(compare(model, min(options.lengths), 8, max(2, options.rounds // 2)))
    memory = [
        {"residues": length, "side": side, "extra_mb": _memory_of(side, length)}
        for length in options.lengths
        for side in ("straightforward", "ours", "ours_bf16_pairs")
    ]
    print(f"{'residues':>9}{'batch':>6}{'plain s':>9}{'ours s':>8}{'ratio':>7}{'bf16':>7}", end="")
    print(f"{'off, A':>10}{'bf16 off, rms A':>17}")
    for row in rows:
        print(
            f"{row['residues']:>9}{row['batch']:>6}{row['cpu_seconds_straightforward']:>9.3f}"
            f"{row['cpu_seconds_ours']:>8.3f}{row['ratio_ours']:>7.2f}"
            f"{row['ratio_ours_bf16_pairs']:>7.2f}{row['largest_angstrom_ours']:>10.1e}"
            f"{row['rms_angstrom_ours_bf16_pairs']:>17.3f}"
        )
    for one in memory:
        print(
            f"{one['residues']:>9} residues, {one['side']}: {one['extra_mb']:.0f} MB extra at most"
        )
    if options.out:
        found = {"torch": torch.__version__, "targets": TARGETS, "half_target": HALF_TARGET}
        options.out.write_text(json.dumps({**found, "rows": rows, "memory": memory}, indent=1))


def _memory_of(side: str, length: int) -> float:
    command = [sys.executable, "-m", "benchmarks.protein.bench_protein"]
    command += ["--memory", side, str(length)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
