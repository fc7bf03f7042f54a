"""Digits out of noise in one step: a flow is learned, and straightened on its own pairs.

Run it: python examples/generate_with_a_flow.py [UPDATES]        (6000 make good digits)
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
digits = images.pixels.float() / images.peak * 2 - 1  # (images, 1, 8, 8) in [-1, 1]
config = FitConfig(
    epochs=10, optimizer="adam", learning_rate=2e-3, weight_decay=0.0,
    schedule="cosine", warmup=0.03, clip=1.0, ema=0.99,
)  # fmt: skip

torch.manual_seed(0)
model = VelocityResMLP((1, 8, 8))  # any network (x, t) -> velocity
fit(model, flow.FlowMatching(), flow.Draws((digits,), size=128, updates=updates // 10), config)
first = flow.Field(model)

with tempfile.TemporaryDirectory() as folder:  # keep it, and a killed run goes on there
    pairs = flow.make_pairs(first, flow.PairStore(folder, count=10 * updates), shape=(1, 8, 8))
straight = flow.reflow(first, pairs, config, batch_size=128, updates=updates // 20)

noise = flow.noise_like((500, 1, 8, 8), 10**9)  # which no pair begins at
wanted, _ = flow.generate(first, noise, steps=100)
for name, field in ("flow", first), ("reflow", straight):
    one, evaluations = flow.generate(field, noise, steps=1)
    off = (one - wanted).square().mean() / wanted.square().mean()
    print(f"{name}: first-order gap {flow.first_order_gap(field, noise, steps=50):.4f}, ", end="")
    print(f"{evaluations} step is {off:.3f} away from the flow's 100 steps")
for row in flow.generate(straight, noise[:1], steps=1)[0][0, 0]:
    print("".join(" .:*#"[min(4, max(0, int((float(value) + 1) * 2.5)))] * 2 for value in row))
