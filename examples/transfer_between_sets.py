"""From one set of images to another without pairs: threes become eights, in one step and back.

python examples/transfer_between_sets.py [UPDATES [FROM TO]]
"""

import sys
import tempfile
from pathlib import Path

import torch

from rectified import flow
from rectified.data import load_images
from rectified.flow import Draws, Field, FlowMatching, FromSet, Independent, PairStore
from rectified.models import VelocityResMLP
from rectified.training import FitConfig, fit

updates = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
old, new = sys.argv[2:4] if len(sys.argv) > 3 else ("3", "8")
config = FitConfig(1, "adam", 2e-3, schedule="cosine", clip=1.0, ema=0.99, device="cpu")
data = load_images("digits")


def images(name: str, part: str) -> torch.Tensor:
    """Images of one class, in [-1, 1]."""
    found = getattr(data, part)
    return found.pixels[found.labels == data.classes.index(name)].float() / 8 - 1


# any source: here the flow begins at images instead of noise
source, target = images(old, "train"), images(new, "train")
torch.manual_seed(0)
network = VelocityResMLP((1, 8, 8), width=128)
objective = FlowMatching(Independent(FromSet(source)))
fit(network, objective, Draws((target,), size=128, updates=updates), config)
first = Field(network)

store = PairStore(Path(tempfile.mkdtemp()), count=len(source), shard=len(source))
pairs = flow.make_pairs(first, store, (1, 8, 8), source=lambda seed, count: source[:count])
straight = flow.reflow(first, pairs, config, batch_size=128, updates=updates)

held_out = images(old, "test")  # never seen in training
for name, field in ("first flow", first), ("reflow", straight):
    for steps in 1, 2, 20:
        made, _ = flow.generate(field, held_out, steps=steps, step=flow.euler)
        cost = flow.transport_cost(held_out, made)
        back = flow.invert(field, made, steps=steps, step=flow.euler)
        error = (back - held_out).square().mean().sqrt()
        print(f"{name}, {steps} steps: moved by {cost:.1f}, back to within {error:.3f} a pixel")
