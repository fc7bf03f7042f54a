"""Binarize your own network, train it in your own loop, and run it on bits.

Run it: python examples/binarize_your_network.py
"""

import tempfile

import torch
from torch import nn

from rectified.binary import ReSTE, convert, set_progress
from rectified.data import Batches, load_images
from rectified.inference import load, pack, save

data = load_images("digits", seed=0)
batches = Batches(data.train, 64, seed=0, mean=data.mean, std=data.std)
test, labels = next(iter(Batches(data.test, 500, shuffle=False, mean=data.mean, std=data.std)))

torch.manual_seed(0)
network = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.MaxPool2d(2)),
    *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(256, 10)),
)
model = convert(network, estimator=ReSTE)  # first and last layer stay in full precision
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
steps = [(epoch, batch) for epoch in range(3) for batch in batches.epoch(epoch)]
for number, (_, (images, classes)) in enumerate(steps):
    set_progress(model, number / (len(steps) - 1))  # o of ReSTE goes from 1 to 3
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), classes).backward()
    optimizer.step()

packed = pack(model.eval())
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    size = save(packed, f"{folder}/packed.safetensors")
    loaded = load(f"{folder}/packed.safetensors")
    accuracy = (loaded(test).argmax(1) == labels).double().mean()
    off = (loaded(test) - model(test)).abs().max()
    print(f"on bits: {accuracy:.1%} accuracy, {size:,} bytes, outputs off by {off:g}")
for layer in packed.layers:
    print(f"layer {layer.name} reads {layer.reads} and gives {layer.gives}")
