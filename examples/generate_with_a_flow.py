"""Digits from noise in one step: learn a flow, make pairs with it, straighten it on them.

python examples/generate_with_a_flow.py [UPDATES]
"""

import sys
import tempfile
from pathlib import Path

import torch

from rectified.data import load_images
from rectified.flow import (
    Draws,
    Field,
    FlowMatching,
    PairStore,
    check_pairs,
    feature_distance,
    first_order_gap,
    generate,
    make_pairs,
    natural_euler,
    noise_like,
    reflow,
)
from rectified.models import VelocityResMLP
from rectified.training import FitConfig, fit

updates = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
config = FitConfig(1, "adam", 2e-3, schedule="cosine", clip=1.0, ema=0.99, device="cpu")
digits = load_images("digits").train.pixels.float() / 8 - 1  # in [-1, 1], as images are learnt

torch.manual_seed(0)
network = VelocityResMLP((1, 8, 8), width=128)  # any network (x, t) -> velocity
fit(network, FlowMatching(), Draws((digits,), size=128, updates=updates), config)
first = Field(network)

store = PairStore(Path(tempfile.mkdtemp()), count=4 * updates)  # goes on where it was stopped
pairs = make_pairs(first, store, (1, 8, 8), steps=30, step=natural_euler)
print(check_pairs(*pairs))
straight = reflow(first, pairs, config, batch_size=128, updates=updates)

noise = noise_like((500, 1, 8, 8), seed=10**9)
for name, flow in ("first flow", first), ("reflow", straight):
    print(f"{name}: first-order gap {first_order_gap(flow, noise, steps=20):.3f}")
    for steps in 1, 2, 4, 20:
        samples, evaluations = generate(flow, noise, steps=steps, step=natural_euler)
        apart = feature_distance(lambda x: x.flatten(1), samples, digits)
        print(f"  {evaluations} evaluations: Fréchet distance of pixels {apart:.2f}")
