"""What a second process brings and costs: training steps, and a threshold over shards.

    OMP_NUM_THREADS=1 python -m benchmarks.scale.bench_processes --out processes.json

`torchrun` starts one and two processes on this machine (gloo over loopback, one thread each), in
turns. Training: ResNet-20 on random 32x32 pictures, the same global batch. Threshold: the exact
share of 90 % of normal weights, each process holding its part; only histograms travel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rectified.models import resnet20
from rectified.pruning.threshold import drop_smallest_
from rectified.training import Batch, FitConfig, accelerator, classification, everyone, fit

TOTAL = (1_000_000, 10_000_000, 50_000_000)  # weights, over all processes
STEPS, BATCH, ROUNDS = 4, 128, 3


class Pictures:
    """The same random pictures in every epoch."""

    def __len__(self) -> int:
        return STEPS

    def epoch(self, number: int, /) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(number)
        for _ in range(STEPS):
            yield (
                torch.randn(BATCH, 3, 32, 32, generator=generator),
                torch.randint(10, (BATCH,), generator=generator),
            )


def training() -> dict[str, Any]:
    """Seconds a step, the first epoch not counted, and the bytes that a step reduces."""
    model = resnet20(num_classes=10, in_channels=3, image_size=(32, 32))
    config = FitConfig(epochs=1, device="cpu", learning_rate=0.01)
    fit(model, classification, Pictures(), config)
    times = []
    for _ in range(ROUNDS):
        with stopped(times):
            fit(model, classification, Pictures(), config)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return {**medians(times, STEPS), "bytes_reduced": size}


@contextmanager
def stopped(times: list[tuple[float, float]]) -> Iterator[None]:
    """Add wall and CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    times.append((time.perf_counter() - wall, time.process_time() - cpu))


def medians(times: list[tuple[float, float]], steps: int = 1) -> dict[str, float]:
    """Of a step; on a machine with other work the CPU's seconds say more."""
    wall, cpu = (statistics.median(one) / steps for one in zip(*times, strict=True))
    return {"seconds": wall, "cpu_seconds": cpu}


def threshold(total: int) -> dict[str, Any]:
    """Seconds of one exact selection over `total` weights in all."""
    process = accelerator("cpu")
    mine = total // process.num_processes
    generator = torch.Generator().manual_seed(process.process_index)
    weights = {"w": torch.randn(mine, generator=generator)}
    times = []
    for _ in range(ROUNDS):
        masks = {"w": torch.ones(mine, dtype=torch.bool)}
        if process.num_processes > 1:
            dist.barrier()
        with stopped(times):
            drop_smallest_(weights, masks, total * 9 // 10, group=everyone("cpu"), key=torch.abs)
    return {"weights": total, **medians(times)}


def inside() -> None:
    """The work of one process."""
    found = {"training": training(), "threshold": [threshold(total) for total in TOTAL]}
    if accelerator("cpu").is_main_process:
        print("FOUND " + json.dumps(found), flush=True)


def started(count: int) -> dict[str, Any]:
    """What so many processes measure together."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = [*torchrun, "--nproc-per-node", str(count), "-m", "benchmarks.scale.bench_processes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, "--inside"], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode or len(lines) != 1:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(lines[0].removeprefix("FOUND "))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.inside:
        inside()
        return
    found = {f"{count} processes": started(count) for count in (1, 2)}
    one, two = found.values()
    for name, alone, shared in [
        ("training step", one["training"], two["training"]),
        *(
            (f"threshold over {a['weights']:,}", a, b)
            for a, b in zip(one["threshold"], two["threshold"], strict=True)
        ),
    ]:
        print(
            f"{name}: wall {alone['seconds']:.3f} s, two processes {shared['seconds']:.3f} s "
            f"({alone['seconds'] / shared['seconds']:.2f}x); CPU of the first process "
            f"{alone['cpu_seconds']:.3f} s, of two {shared['cpu_seconds']:.3f} s "
            f"({alone['cpu_seconds'] / shared['cpu_seconds']:.2f}x)"
        )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
