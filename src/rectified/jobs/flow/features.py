"""Classifiers of images, of whose features distances and perceptual losses are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.data import Batches, ImageData
from rectified.seeds import seeded
from rectified.training import FitConfig, classification, classification_quality, evaluate, fit

Device = Literal["auto", "cpu", "cuda"]
_SMALL = 16  # pixels per side up to which features are kept at 4x4


@dataclass(frozen=True)
class Layout:
    """Layers of a classifier.

    Attributes:
        widths: channels of the three convolutions, and hidden features.
        has_norms: whether batch norms stand after the convolutions, which brings the features of
            all layers to one scale.
    """

    widths: tuple[int, int, int, int]
    has_norms: bool


FOR_DISTANCE = Layout((16, 32, 32, 64), has_norms=False)
# of another kind than the distance's: what is trained for a measure cannot be measured by it
FOR_LOSS = Layout((24, 24, 48, 96), has_norms=True)


class Features(nn.Module):
    """A small classifier with features: of its hidden layer, and of every layer.

    Three convolutions, pooled to at most 8x8, then a hidden layer that sees every place: features
    that were averaged over places could not tell a digit from its parts in disorder.

    Args:
        shape: channels, height and width of an image.
        classes: how many there are.
        layout: of its layers.
    """

    def __init__(self, shape: Sequence[int], classes: int, layout: Layout) -> None:
        super().__init__()
        channels, height, width = shape
        first, second, third, hidden = layout.widths
        has_norms = layout.has_norms
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=not has_norms),
                nn.BatchNorm2d(outputs) if has_norms else nn.Identity(),
            )
            for inputs, outputs in ((channels, first), (first, second), (second, third))
        )
        self.side = min(4 if max(height, width) <= _SMALL else 8, height, width)
        self.hidden = nn.Linear(third * self.side**2, hidden)
        self.classes = nn.Linear(hidden, classes)

    def blocks(self, x: Float[Tensor, "n channels height width"]) -> list[Tensor]:
        """Outputs of every activation, first to last."""
        outputs = []
        for number, convolution in enumerate(self.convolutions):
            x = convolution(x).relu()
            outputs.append(x)
            if number == 1 and x.shape[-1] > self.side:
                x = nn.functional.max_pool2d(x, 2)
        x = nn.functional.adaptive_avg_pool2d(x, self.side)
        return [*outputs, self.hidden(x.flatten(1)).relu()]

    def features(self, x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n features"]:
        """The hidden layer."""
        return self.blocks(x)[-1]

    def forward(self, x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n classes"]:
        """Class scores."""
        return self.classes(self.blocks(x)[-1])


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained `Features`, and how good it is.

    Attributes:
        network: frozen.
        accuracy: on the test images.
    """

    network: Features
    accuracy: float


def train_classifier(
    images: ImageData, layout: Layout, *, seed: int, device: Device, progress: str
) -> Classifier:
    """Train a classifier on images in [-1, 1] and keep its features.

    Args:
        images: of all classes.
        layout: of the network.
        seed: of its weights and of the order of the images.
        device: auto, cpu or cuda.
        progress: words before the progress bar.
    """
    half = torch.full((images.channels,), 0.5)  # pixels to [-1, 1], as samples are
    shape = (images.channels, images.height, images.width)
    with seeded(seed, "features"):
        network = Features(shape, len(images.classes), layout)
    is_small = len(images.train) < 10_000
    config = FitConfig(
        epochs=20 if is_small else 10,
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=0.0,
        schedule="cosine",
        seed=seed,
        device=device,
    )
    batches = Batches(images.train, 64 if is_small else 256, seed=seed, mean=half, std=half)
    fit(network, classification, batches, config, progress=progress)
    held_out = Batches(images.test, 500, shuffle=False, mean=half, std=half)
    quality = evaluate(network, classification_quality, held_out, device=device)
    return Classifier(network.eval().requires_grad_(False), quality["accuracy"])
