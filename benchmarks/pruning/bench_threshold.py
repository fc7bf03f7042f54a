"""Global magnitude pruning: exact radix selection against `torch.nn.utils.prune`.

Both sides start from the same bias-free linear layers and end with masks and with zeros at the
pruned weights. Each side runs in processes of its own, in turns, so that the peak of resident
memory over what was there before belongs to that side alone.

    python -m benchmarks.pruning.bench_threshold --weights 200_000_000 --out threshold.json
    python -m benchmarks.pruning.bench_threshold --sides streamed --weights 1_000_000_000

The second line is the way for networks that fill the memory: no score is stored, masks are changed
in place.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from rectified.pruning.masks import apply_, full_masks, kept
from rectified.pruning.scores import Snapshot, magnitude
from rectified.pruning.threshold import drop_smallest, drop_smallest_


def network(weights: int, layers: int) -> nn.Sequential:
    """Square linear layers with about `weights` weights together."""
    width = round((weights / layers) ** 0.5)
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def ours(model: nn.Sequential, amount: float) -> int:
    """Score, select, mask; returns the number of weights kept."""
    masks = full_masks(model)
    state = model.state_dict()
    scores = magnitude(Snapshot(model, state, state, masks))
    masks = drop_smallest(scores, masks, round(amount * kept(masks)))
    apply_(model, masks)
    return kept(masks)


def theirs(model: nn.Sequential, amount: float) -> int:
    """The same through `global_unstructured`."""
    layers = [(layer, "weight") for layer in model]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=amount)
    return sum(int(mask.count_nonzero()) for mask in model.buffers())


def streamed(model: nn.Sequential, amount: float) -> int:
    """As ours, with magnitudes made a chunk at a time and masks changed in place."""
    masks = full_masks(model)
    weights = dict(model.named_parameters())
    drop_smallest_(weights, masks, round(amount * kept(masks)), key=torch.abs)
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask)
    return kept(masks)


SIDES: dict[str, Callable[[nn.Sequential, float], int]] = {
    "ours": ours,
    "torch": theirs,
    "streamed": streamed,
}


def resident_mib(field: str) -> float:
    """`VmRSS` now, or `VmHWM` at its highest, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(
    connection: Connection, side: str, amount: float, weights: int, layers: int, threads: int
) -> None:
    """Run one side once; send seconds, extra MiB and the number of weights kept."""
    torch.set_num_threads(threads)
    SIDES[side](network(10_000, layers), amount)  # what is loaded lazily is loaded now
    model = network(weights, layers)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident_mib("VmRSS")
    start = time.perf_counter()
    left = SIDES[side](model, amount)
    seconds = time.perf_counter() - start
    connection.send({"seconds": seconds, "mib": resident_mib("VmHWM") - before, "kept": left})


def in_own_process(*arguments: Any) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender, *arguments))
    process.start()
    sender.close()  # so that a process that dies ends the wait
    result = receiver.recv()
    process.join()
    return result


def compare(amount: float, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over interleaved rounds, and our share of theirs."""
    sizes = (options.weights, options.layers, options.threads)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    for _ in range(options.rounds):
        for side in runs:
            runs[side].append(in_own_process(side, amount, *sizes))
    row: dict[str, Any] = {"amount": amount}
    for unit in ("seconds", "mib"):
        for side in runs:
            row[f"{unit}_{side}"] = statistics.median(run[unit] for run in runs[side])
        if {"ours", "torch"} <= set(runs):
            row[f"{unit}_ratio"] = row[f"{unit}_ours"] / row[f"{unit}_torch"]
    row["same_number_kept"] = len({one[0]["kept"] for one in runs.values()}) == 1
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=200_000_000)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--amounts", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=["ours", "torch"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [compare(amount, options) for amount in options.amounts]
    print(f"{options.weights:,} weights, {options.layers} layers, {options.threads} thread(s)")
    for row in rows:
        told = [
            f"{side} {row[f'seconds_{side}']:.2f} s, {row[f'mib_{side}']:.0f} MiB extra"
            for side in options.sides
        ]
        if "seconds_ratio" in row:
            told.append(f"ratios {row['seconds_ratio']:.3f}, {row['mib_ratio']:.3f}")
        print(f"{row['amount']:.0%} pruned: {'; '.join(told)}; same kept {row['same_number_kept']}")
    if options.out:
        report = {"weights": options.weights, "threads": options.threads, "rows": rows}
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
