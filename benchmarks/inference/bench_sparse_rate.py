"""How fast the sparse kernels multiply, against what the caches deliver: the roofline.

    python -m benchmarks.inference.bench_sparse_rate

A nonzero weight costs, for each 16 (AVX-512) positions of its output, one fused multiply-add whose
factor comes from memory. So a layer takes at least

    nonzeros * positions / lanes / (rate * threads),

and the rate is that of loads: a core with two 512-bit load ports does two a cycle if each lies in
one cache line, and one if each lies across two, as when a 3x3 convolution reads its input one pixel
to the left or right. Here a convolution with all its weights, whose rows are long and whose passes
fit the level-1 cache, says what this machine does at best; one thread, CPU time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from rectified.inference.sparse.builder import Builder
from rectified.inference.sparse.kernels import LANES
from rectified.inference.sparse.layout import Window

SIZE, CHANNELS = 32, 64
CASES = {"whole cache lines (1x1)": 1, "split cache lines (3x3)": 3}


def main() -> None:
    """Print one rate a case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = []
    for name, kernel in CASES.items():
        found = rate(kernel, options.rounds)
        rows.append({"case": name, "per_nanosecond": found})
        print(f"{name}: {found:.2f} vector multiply-adds a nanosecond", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"lanes": LANES, "rows": rows}, indent=1) + "\n")


def rate(kernel: int, rounds: int) -> float:
    """Vector multiply-adds a nanosecond of one thread.

    Args:
        kernel: rows and columns of the convolution.
        rounds: how many calls are timed; the median counts.
    """
    weight = np.ones((CHANNELS, CHANNELS, kernel, kernel), np.float32)
    builder = Builder(halo=kernel // 2)
    window = Window((kernel, kernel), (1, 1), (kernel // 2, kernel // 2))
    bias = np.zeros(CHANNELS, np.float32)
    value = builder.input((CHANNELS, SIZE, SIZE))
    builder.output(builder.convolution(value, weight, bias, window), flat=False)
    program = builder.finish(1)
    x = torch.randn(1, CHANNELS, SIZE, SIZE)
    times = []
    for _ in range(rounds):
        program(x)
        before = time.process_time()
        program(x)
        times.append(time.process_time() - before)
    return weight.size * SIZE * SIZE / LANES / statistics.median(times) / 1e9


if __name__ == "__main__":
    main()
