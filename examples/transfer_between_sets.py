"""Turn one set of samples into another: handwritten 3s into 8s, in one step and back again.

Run it: python examples/transfer_between_sets.py [UPDATES]        (3000 make good digits)
"""

import sys
import tempfile

import torch

from rectified import flow
from rectified.data import load_images
from rectified.models import VelocityResMLP
from rectified.training import FitConfig, fit

updates = int(sys.argv[1]) if len(sys.argv) > 1 else 300
images = load_images("digits").train
pixels = images.pixels.float() / images.peak * 2 - 1
threes, eights = (pixels[images.labels == number] for number in (3, 8))
config = FitConfig(
    epochs=10, optimizer="adam", learning_rate=2e-3, weight_decay=0.0,
    schedule="cosine", warmup=0.03, clip=1.0, ema=0.99,
)  # fmt: skip

torch.manual_seed(0)
model = VelocityResMLP((1, 8, 8))
objective = flow.FlowMatching(flow.Independent(flow.FromSet(threes)))  # every 8 meets some 3
fit(model, objective, flow.Draws((eights,), size=64, updates=updates // 10), config)
first = flow.Field(model)


def draw(seed: int, count: int) -> torch.Tensor:
    """Some 3s, the same for the same seed."""
    return threes[torch.randint(len(threes), (count,), generator=torch.manual_seed(seed))]


with tempfile.TemporaryDirectory() as folder:
    store = flow.PairStore(folder, count=2 * updates)
    pairs = flow.make_pairs(first, store, shape=(1, 8, 8), source=draw)  # now every 3 has its own 8
straight = flow.reflow(first, pairs, config, batch_size=64, updates=updates // 20)

met, order = min(len(threes), len(eights)), torch.randperm(len(eights))
print(f"cost of random pairs {flow.transport_cost(threes[:met], eights[order][:met]):.1f}")
for name, field in ("flow", first), ("reflow", straight):
    one, many = (flow.generate(field, threes, steps=steps)[0] for steps in (1, 50))
    back = flow.invert(field, many, steps=50)
    print(f"{name}: cost {flow.transport_cost(threes, many):.1f}, one step is", end=" ")
    print(f"{(one - many).square().mean():.3f} off, back again {(back - threes).abs().mean():.4f}")
