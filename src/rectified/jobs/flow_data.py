"""What flows learn from and are measured against: points or images, a source, a distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rectified.data import DISTRIBUTIONS, Batches, Images, draw_points, load_images, read_points
from rectified.errors import UserError
from rectified.flow import FromSet, feature_distance, wasserstein2
from rectified.flow.couplings import Source, gaussian
from rectified.training import FitConfig, classification, classification_quality, evaluate, fit

Device = Literal["auto", "cpu", "cuda"]
_SMALL = 16  # pixels a side up to which features are kept at 4x4

DRAWN = 20_000  # points that a drawn distribution is learnt from
_POINT_FILES = (".npy", ".csv")
_TEST_SHARE = 5  # one point in so many of a file is held out


@dataclass(frozen=True, eq=False)
class Samples:
    """One side of a flow.

    Attributes:
        name: as the user wrote it.
        train: what is learnt from.
        reference: what samples are compared with.
        labels: classes of `train`, for images.
        classes: how many there are; 0 for points.
        images: the images themselves, for the networks that look at features.
        low: least and greatest value that a sample may have when shown.
    """

    name: str
    train: Float[Tensor, "n ..."]
    reference: Float[Tensor, "m ..."]
    labels: Int64[Tensor, " n"] | None = None
    classes: int = 0
    is_image: bool = False
    all_train: Images | None = None
    all_test: Images | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point or image."""
        return tuple(self.train.shape[1:])


def is_points(name: str) -> bool:
    """Whether a data set's name means points."""
    return name in DISTRIBUTIONS or Path(name).suffix in _POINT_FILES


def load(name: str, *, seed: int, limit: int | None, image_size: int | None, many: int) -> Samples:
    """Load points or images by the user's word.

    Args:
        name: a distribution, a file of points, or a data set of images, perhaps with `#CLASS`.
        seed: of draws and splits.
        limit: at most so many training examples.
        image_size: side that images are resized to.
        many: reference points that are wanted, at most.

    Raises:
        UserError: if there is nothing of that name, or too little in it.
    """
    return (
        _points(name, seed, limit, many)
        if is_points(name)
        else _images(name, seed, limit, image_size, many)
    )


def _points(name: str, seed: int, limit: int | None, many: int) -> Samples:
    if name in DISTRIBUTIONS:
        # apart from each other and from those of other seeds
        train = draw_points(name, limit or DRAWN, 3 * seed)
        return Samples(name, train, draw_points(name, many, 3 * seed + 1))
    points = read_points(Path(name))
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    held = max(len(points) // _TEST_SHARE, 1)
    if len(points) < 10:
        raise UserError(f"{name} must hold at least 10 points, got {len(points)}")
    train = points[order[held:]]
    return Samples(name, train[: limit or len(train)], points[order[:held]][:many])


def _images(name: str, seed: int, limit: int | None, image_size: int | None, many: int) -> Samples:
    source, _, wanted = name.partition("#")
    data = load_images(source, seed=seed, limit=limit, validation=0.0, image_size=image_size)
    train, test = data.train, data.test
    if wanted:
        if wanted not in data.classes:
            raise UserError(
                f"class {wanted!r} is not in {source}; choose from {', '.join(data.classes)}"
            )
        number = data.classes.index(wanted)
        train, test = (
            part.select((part.labels == number).nonzero()[:, 0]) for part in (train, test)
        )
    # few images: all of them, since a distance to few has a bias of its own
    compared = scaled(test) if len(test) >= many else torch.cat([scaled(test), scaled(train)])
    return Samples(
        name,
        scaled(train),
        compared[:many],
        train.labels,
        len(data.classes),
        True,
        data.train,
        data.test,
    )


def scaled(images: Images) -> Float[Tensor, "n channels height width"]:
    """Pixels in [-1, 1]."""
    return images.pixels.float() / images.peak * 2 - 1


@dataclass(frozen=True, eq=False)
class Transfer:
    """Both sides of a flow, in the unit that it is learnt in.

    Points from Gaussian noise are standardised, since the noise has that scale; between two sets
    they stay as they are.
    """

    target: Samples
    source: Samples | None
    mean: Tensor
    deviation: Tensor

    @cached_property
    def train(self) -> Tensor:
        """What is learnt from."""
        return self.scaled(self.target.train)

    @cached_property
    def reference(self) -> Tensor:
        """What samples are compared with."""
        return self.scaled(self.target.reference)

    def scaled(self, points: Tensor) -> Tensor:
        """Into the unit of learning."""
        return (points - self.mean) / self.deviation

    def unscaled(self, points: Tensor) -> Tensor:
        """Back into the data's own unit."""
        return points * self.deviation + self.mean

    def coupling_source(self) -> Source:
        """Draws source points in training."""
        return gaussian if self.source is None else FromSet(self.source.train)

    def draw(self, seed: int, count: int, *, held_out: bool = False) -> Tensor:
        """Source points by seed; `held_out` ones were never trained on."""
        if self.source is None:
            shape = (count, *self.target.shape)
            return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if self.source.name in DISTRIBUTIONS:
            return draw_points(self.source.name, count, seed + 2**20)
        pool = self.source.reference if held_out else self.source.train
        rows = torch.randint(len(pool), (count,), generator=torch.Generator().manual_seed(seed))
        return pool[rows]


def load_transfer(
    data: str, source: str, *, seed: int, limit: int | None, image_size: int | None, many: int
) -> Transfer:
    """Both sides, checked to fit.

    Raises:
        UserError: if they have other dimensions, or too few points.
    """
    target = load(data, seed=seed, limit=limit, image_size=image_size, many=many)
    if source == "gaussian":
        is_points = not target.is_image
        mean = target.train.mean(0) if is_points else torch.zeros(1)
        deviation = target.train.std(0).clamp(min=1e-6) if is_points else torch.ones(1)
        return Transfer(target, None, mean, deviation)
    side = image_size or (target.shape[-1] if target.is_image else None)
    other = load(source, seed=seed + 10_000, limit=limit, image_size=side, many=many)
    if other.shape != target.shape:
        raise UserError(
            f"source and data must have one dimension, got {other.shape} ({source}) and "
            f"{target.shape} ({data})"
        )
    return Transfer(target, other, torch.zeros(1), torch.ones(1))


# --- networks that look at images ---------------------------------------------------------------


class Features(nn.Module):
    """A small classifier whose features are looked at: of its hidden layer, and of every layer.

    Three convolutions, pooled to at most 8x8, then a hidden layer that sees every place: features
    that were averaged over places could not tell a digit from its parts in disorder.

    Args:
        shape: channels, height and width of an image.
        widths: channels of the three convolutions, and hidden features.
        classes: how many there are.
        has_norms: whether batch norms stand after the convolutions, which brings the features of
            all layers to one scale.
    """

    def __init__(
        self, shape: Sequence[int], widths: Sequence[int], classes: int, *, has_norms: bool = False
    ) -> None:
        super().__init__()
        channels, height, width = shape
        first, second, third, hidden = widths
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
        """What comes out of every activation, first to last."""
        found = []
        for number, convolution in enumerate(self.convolutions):
            x = convolution(x).relu()
            found.append(x)
            if number == 1 and x.shape[-1] > self.side:
                x = nn.functional.max_pool2d(x, 2)
        x = nn.functional.adaptive_avg_pool2d(x, self.side)
        return [*found, self.hidden(x.flatten(1)).relu()]

    def features(self, x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n features"]:
        """The hidden layer."""
        return self.blocks(x)[-1]

    def forward(self, x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n classes"]:
        """Class scores."""
        return self.classes(self.blocks(x)[-1])


@dataclass(frozen=True, eq=False)
class Looker:
    """A trained `Features`, and how good a classifier it is.

    Attributes:
        network: frozen.
        accuracy: of the classifier on the test images.
    """

    network: Features
    accuracy: float


def train_features(
    samples: Samples,
    *,
    widths: Sequence[int],
    has_norms: bool,
    seed: int,
    device: Device,
    progress: str,
) -> Looker:
    """Train a classifier on images in [-1, 1] and keep its features.

    Args:
        samples: images with labels.
        widths: channels of its convolutions, and hidden features.
        has_norms: whether it has batch norms.
        seed: of its weights and of the order of the images.
        device: auto, cpu or cuda.
        progress: words before the progress bar.
    """
    train, test = samples.all_train, samples.all_test
    assert train is not None
    assert test is not None
    half = torch.full((samples.shape[0],), 0.5)  # pixels to [-1, 1], as samples are
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Features(samples.shape, widths, samples.classes, has_norms=has_norms)
    is_small = len(train) < 10_000
    size = 64 if is_small else 256
    config = FitConfig(
        epochs=20 if is_small else 10,
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=0.0,
        schedule="cosine",
        seed=seed,
        device=device,
    )
    batches = Batches(train, size, seed=seed, mean=half, std=half)
    fit(network, classification, batches, config, progress=progress)
    held = Batches(test, 500, shuffle=False, mean=half, std=half)
    quality = evaluate(network, classification_quality, held, device=device)
    return Looker(network.eval().requires_grad_(False), quality["accuracy"])


@dataclass(frozen=True, eq=False)
class Distance:
    """How far samples are from the reference.

    Attributes:
        name: w2 (exact, points, in the unit of learning) or frechet (features of a classifier).
        measure: samples to their distance.
        floor: the same between real samples: of the training set and of the reference.
        protocol: what was compared, in words.
    """

    name: str
    measure: Callable[[Tensor], float]
    floor: float
    protocol: str


def point_distance(transfer: Transfer, count: int, seed: int) -> Distance:
    """Exact 2-Wasserstein distance to as many reference points."""
    reference = transfer.reference[:count]
    name = transfer.target.name
    fresh = (
        transfer.scaled(draw_points(name, len(reference), 3 * seed + 2))
        if name in DISTRIBUTIONS
        else transfer.train[: len(reference)]
    )
    return Distance(
        "w2",
        lambda samples: wasserstein2(samples[: len(reference)].cpu(), reference[: len(samples)]),
        wasserstein2(fresh, reference[: len(fresh)]),
        f"exact W2 of {len(reference)} samples to as many held-out points",
    )


def image_distance(transfer: Transfer, looker: Looker, count: int) -> Distance:
    """Squared Fréchet distance of a classifier's features."""
    reference = transfer.reference
    device = next(looker.network.parameters()).device

    def features(x: Tensor) -> Tensor:
        return looker.network.features(x.to(device)).cpu()

    real = transfer.train
    return Distance(
        "frechet",
        lambda samples: feature_distance(features, samples.clamp(-1, 1), reference),
        feature_distance(features, real[: max(count, 2)], reference),
        f"Fréchet distance of {count} samples to {len(reference)} images on the hidden layer "
        f"of a classifier with {looker.accuracy:.1%} test accuracy",
    )
