"""What holding pruned weights at zero costs: a training step, and the mask operation by itself.

*Step*: ResNet-20, one step of SGD with momentum and weight decay, dense and with `hold`, in turns.
*Operation*: `hold`'s hook against the AP reference's round trip through NumPy (every weight and its
gradient to NumPy, `np.where` on the weight's size, and back). CPU time of this process throughout.

    python benchmarks/pruning/bench_masked_step.py --out masked_step.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rectified.models import resnet20
from rectified.pruning import Masks, full_masks, hold, prune
from rectified.pruning.masks import prunable
from rectified.timing import interleaved, medians

EPSILON = 1e-6  # the reference's size of a weight that counts as pruned


def network() -> nn.Module:
    torch.manual_seed(0)
    return resnet20(num_classes=10, in_channels=3, image_size=(32, 32))


def random_masks(model: nn.Module, density: float) -> Masks:
    masks = full_masks(model)
    draw = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(mask.shape, generator=draw) for name, mask in masks.items()}
    return prune(masks, scores, 1 - density)


def trainer(batch: int, density: float | None) -> Callable[[], None]:
    """One training step, masked unless there is no density."""
    model = network().train()
    keep = hold(model, {} if density is None else random_masks(model, density))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        keep()

    return step


def round_trip(weights: Sequence[Tensor]) -> Callable[[], None]:
    """What the reference does with every weight in every step."""

    def mask() -> None:
        for weight in weights:
            values, slopes = weight.data.cpu().numpy(), weight.grad.data.cpu().numpy()
            slopes = np.where(np.abs(values) < EPSILON, 0, slopes)
            weight.grad.data = torch.from_numpy(slopes).to(weight.device)

    return mask


def alternate(sides: dict[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, Any]:
    """Median seconds of both sides, and the median of the second's share of the first."""
    many = {
        name: lambda side=side: [side() for _ in range(repeats)] for name, side in sides.items()
    }
    times = interleaved(many, rounds=rounds, clock=time.process_time)
    seconds = {name: [taken / repeats for taken in rounds] for name, rounds in times.items()}
    first, second = seconds.values()
    ratios = sorted(b / a for a, b in zip(first, second, strict=True))
    return {
        "seconds": medians(seconds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=50, help="of the operation in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    steps = {
        "dense": trainer(options.batch, None),
        "masked": trainer(options.batch, options.density),
    }
    step = alternate(steps, options.rounds, 1)
    model = network()
    keep = hold(model, random_masks(model, options.density))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    operations = {"hold": keep, "NumPy": round_trip(list(prunable(model).values()))}
    operation = alternate(operations, options.rounds, options.repeats)

    print(f"ResNet-20, batch {options.batch}, density {options.density}")
    print(f"{'':10} {'ours ms':>9} {'against ms':>11} {'ratio':>7}  target")
    dense, masked = step["seconds"]["dense"], step["seconds"]["masked"]
    print(f"{'step':10} {1e3 * masked:9.2f} {1e3 * dense:11.2f} {step['ratio']:7.3f}  <= 1.03")
    ours, theirs = operation["seconds"]["hold"], operation["seconds"]["NumPy"]
    print(
        f"{'operation':10} {1e3 * ours:9.4f} {1e3 * theirs:11.4f} {operation['ratio']:7.2f}  >= 15"
    )
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        report = settings | {"step": step, "operation": operation}
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
