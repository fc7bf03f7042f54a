"""Prune your own network in your own loop, with AP, and look at its dead neurons.

Run it: python examples/prune_your_network.py
"""

import torch
from torch import nn

from rectified.data import Batches, load_images
from rectified.pruning import Training, arm, dead_neuron_rate, hold, iterate, magnitude

data = load_images("digits", seed=0)
batches = Batches(data.train, 64, seed=0, mean=data.mean, std=data.std)
examples = Batches(data.train, 500, shuffle=False, mean=data.mean, std=data.std)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
)


def train(training: Training) -> None:
    """Four epochs of plain SGD; `keep` holds pruned weights at zero."""
    keep = hold(training.model, training.masks)
    optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(4):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(training.model(images), labels).backward()
            optimizer.step()
            keep()


for cycle in iterate(model, train, arm("lite", magnitude, rate=0.4, ap_rate=0.04), cycles=3):
    dead = dead_neuron_rate(model, examples, masks=cycle.masks)
    print(f"density {cycle.density:.1%}: dynamic dead neuron rate {dead.dynamic():.1%}")
