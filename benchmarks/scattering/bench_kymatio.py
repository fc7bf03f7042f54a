"""`Scattering2D` against kymatio's: the same coefficients, less time.

Both sides transform the same images in one process, in turns; each side's time is its smallest over
the rounds. CPU time is what counts on a machine that others use too.

    pip install kymatio
    OMP_NUM_THREADS=2 python benchmarks/scattering/bench_kymatio.py --out kymatio.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectified.scattering import Scattering2D

CASES = ((64, 32, 2), (64, 32, 3), (64, 128, 4))  # images, side, J


def kymatio_scattering(J: int, side: int) -> Callable[[Tensor], Tensor]:
    """Kymatio's transform; it asks for a function that SciPy 1.17 has under another name."""
    import scipy.special

    if not hasattr(scipy.special, "sph_harm"):
        scipy.special.sph_harm = lambda m, n, theta, phi: scipy.special.sph_harm_y(n, m, phi, theta)
    from kymatio.torch import Scattering2D as Kymatio

    return Kymatio(J, (side, side))


def seconds(transform: Callable[[Tensor], Tensor], images: Tensor) -> tuple[float, float]:
    """CPU and wall time of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    transform(images)
    return time.process_time() - cpu, time.perf_counter() - wall


def backward(transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The transform and the gradient of its sum."""

    def both(images: Tensor) -> Tensor:
        images = images.clone().requires_grad_()
        transform(images).sum().backward()
        assert images.grad is not None
        return images.grad

    return both


def compare(
    name: str, sides: dict[str, Callable[[Tensor], Tensor]], images: Tensor, rounds: int
) -> dict[str, Any]:
    """Smallest times over interleaved rounds, their ratio, and how far the results differ."""
    found = {side: transform(images) for side, transform in sides.items()}
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, transform in sides.items():
            times[side].append(seconds(transform, images))
    row: dict[str, Any] = {"case": name, "rounds": rounds}
    for place, unit in enumerate(("cpu", "wall")):
        for side in sides:
            row[f"{unit}_ms_{side}"] = 1e3 * min(one[place] for one in times[side])
        row[f"{unit}_ratio"] = row[f"{unit}_ms_kymatio"] / row[f"{unit}_ms_ours"]
    difference = (found["ours"] - found["kymatio"]).abs().max() / found["kymatio"].abs().max()
    row["largest_difference"] = difference.item()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for count, side, J in CASES:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, side, side, generator=generator)
        ours: nn.Module = Scattering2D(J, (side, side))
        sides = {"kymatio": kymatio_scattering(J, side), "ours": ours}
        rows.append(compare(f"{count} x {side}x{side}, J={J}", sides, images, options.rounds))
        if J == 2:
            both = {name: backward(transform) for name, transform in sides.items()}
            label = f"16 x {side}x{side}, J={J}, forward and backward"
            rows.append(compare(label, both, images[:16], options.rounds))
    threads = torch.get_num_threads()
    print(f"{threads} thread(s), smallest of {options.rounds} interleaved rounds")
    print(f"{'case':<40} {'kymatio / ours, CPU ms':>24} {'ratio':>6} {'wall ratio':>11} differ by")
    for row in rows:
        times = f"{row['cpu_ms_kymatio']:.0f} / {row['cpu_ms_ours']:.0f}"
        print(
            f"{row['case']:<40} {times:>24} {row['cpu_ratio']:6.2f} {row['wall_ratio']:11.2f} "
            f"{row['largest_difference']:.1e}"
        )
    if options.out:
        options.out.write_text(json.dumps({"threads": threads, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
