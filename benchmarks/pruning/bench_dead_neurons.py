"""Dead neuron rates against a plain evaluation pass of the same network over the same images.

Rounds alternate between the two, and each is timed in CPU time of this process, so that others on
the machine disturb both sides alike. The median of the rounds' ratios is what counts.

    python benchmarks/pruning/bench_dead_neurons.py --out dead_neurons.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectified.models import resnet20
from rectified.pruning.dead_neurons import dead_neuron_rate
from rectified.timing import interleaved

Batch = tuple[Tensor]

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def evaluate(model: nn.Module, batches: list[Batch]) -> None:
    model.eval()
    with torch.no_grad():
        for (images,) in batches:
            model(images)


def compare(layout: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of both sides and of their ratio, over interleaved rounds."""
    memory_format = FORMATS[layout]
    torch.manual_seed(0)
    model = resnet20(num_classes=10, in_channels=3, image_size=(32, 32))
    model.to(memory_format=memory_format)
    images = torch.randn(options.images, 3, 32, 32).to(memory_format=memory_format)
    batches = [(part,) for part in images.split(options.batch)]
    sides = {
        "plain": lambda: evaluate(model, batches),
        "counted": lambda: dead_neuron_rate(model, batches),
    }
    times = interleaved(sides, rounds=options.rounds, clock=time.process_time)
    plain, counted = times["plain"], times["counted"]
    ratios = sorted(b / a for a, b in zip(plain, counted, strict=True))
    return {
        "layout": layout,
        "seconds_evaluation": statistics.median(plain),
        "seconds_counting": statistics.median(counted),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ratio_of_minima": min(counted) / min(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [compare(layout, options) for layout in FORMATS]
    print(f"ResNet-20, {options.images} images in batches of {options.batch}, target 1.20")
    print(f"{'layout':14} {'evaluation s':>12} {'counting s':>12} {'ratio':>6} {'of minima':>10}")
    for row in rows:
        print(
            f"{row['layout']:14} {row['seconds_evaluation']:12.3f} {row['seconds_counting']:12.3f} "
            f"{row['ratio']:6.3f} {row['ratio_of_minima']:10.3f}"
        )
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        options.out.write_text(
            json.dumps(settings | {"target": 1.2, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
