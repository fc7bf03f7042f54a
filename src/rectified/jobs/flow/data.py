"""The data of flows: points or images, and a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rectified.data import (
    DISTRIBUTIONS,
    ImageData,
    Images,
    ImageSource,
    draw_points,
    read_points,
)
from rectified.errors import UserError
from rectified.flow import FromSet
from rectified.flow.couplings import Source, gaussian
from rectified.seeds import generator

DRAWN = 20_000  # points that a drawn distribution is learnt from
_POINT_FILES = (".npy", ".csv")
_TEST_SHARE = 5  # one in so many points of a file is held out


@dataclass(frozen=True, eq=False)
class Samples:
    """One side of a flow.

    Attributes:
        name: as the user wrote it.
        train: what is learnt from.
        reference: what samples are compared with.
        labels: classes of `train`; all 0 for points.
        images: the whole data set, of all classes; None for points.
    """

    name: str
    train: Float[Tensor, "n ..."]
    reference: Float[Tensor, "m ..."]
    labels: Int64[Tensor, " n"]
    images: ImageData | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point or image."""
        return tuple(self.train.shape[1:])

    @property
    def classes(self) -> int:
        """The number of classes; 0 for points."""
        return 0 if self.images is None else len(self.images.classes)

    @property
    def is_image(self) -> bool:
        """Whether they are images."""
        return self.images is not None


def is_points(name: str) -> bool:
    """Whether a data set's name means points."""
    return name in DISTRIBUTIONS or Path(name).suffix in _POINT_FILES


Split = Callable[[int, int | None, int], Samples]
"""Seed, training examples at most, reference points that are wanted at most -> one side."""


def open_samples(name: str, image_size: int | None) -> Split:
    """Open points or images by the user's word: they are read once, however many splits follow.

    Args:
        name: a distribution, a file of points, or a data set of images, perhaps with `#CLASS`.
        image_size: side that images are resized to.

    Raises:
        UserError: if there is nothing of that name, or too little in it; for images, when they are
            split.
    """
    if name in DISTRIBUTIONS:
        return partial(_drawn, name)
    if is_points(name):
        points = read_points(Path(name))
        if len(points) < 10:
            raise UserError(f"{name} must hold at least 10 points, got {len(points)}")
        return partial(_cut, name, points)
    return partial(_images, name, ImageSource(name.partition("#")[0], image_size))


def _drawn(name: str, seed: int, limit: int | None, many: int) -> Samples:
    # apart from each other and from those of other seeds
    train = draw_points(name, limit or DRAWN, 3 * seed)
    return _points(name, train, draw_points(name, many, 3 * seed + 1))


def _cut(name: str, points: Tensor, seed: int, limit: int | None, many: int) -> Samples:
    order = torch.randperm(len(points), generator=generator(seed, "split"))
    held = max(len(points) // _TEST_SHARE, 1)
    return _points(name, points[order[held:]][:limit], points[order[:held]][:many])


def _points(name: str, train: Tensor, reference: Tensor) -> Samples:
    return Samples(name, train, reference, torch.zeros(len(train), dtype=torch.int64))


def _images(name: str, source: ImageSource, seed: int, limit: int | None, many: int) -> Samples:
    data = source.load(seed=seed, limit=limit, validation=0.0)
    train, test = data.train, data.test
    place, _, wanted = name.partition("#")
    if wanted:
        if wanted not in data.classes:
            raise UserError(
                f"class {wanted!r} is not in {place}; choose from {', '.join(data.classes)}"
            )
        number = data.classes.index(wanted)
        train, test = (
            part.select((part.labels == number).nonzero()[:, 0]) for part in (train, test)
        )
    # few images: all of them, since a distance to few has a bias of its own
    compared = scaled(test) if len(test) >= many else torch.cat([scaled(test), scaled(train)])
    return Samples(name, scaled(train), compared[:many], train.labels, data)


def _of_class(images: Images, number: int) -> Images:
    return images.select((images.labels == number).nonzero()[:, 0])


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
        """Target points that are learnt from."""
        return self.scaled(self.target.train)

    @cached_property
    def reference(self) -> Tensor:
        """Target points that samples are compared with."""
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
            return torch.randn(shape, generator=generator(seed, "source"))
        if self.source.name in DISTRIBUTIONS:
            return draw_points(self.source.name, count, seed + 2**20)
        pool = self.source.reference if held_out else self.source.train
        rows = torch.randint(len(pool), (count,), generator=generator(seed, "source"))
        return pool[rows]


class FlowData:
    """The data of a study: read once, when first asked for; every seed has its own split of them.

    Args:
        target: a name, as in `open_samples`.
        source: gaussian, or likewise a name.
        limit: at most so many training examples.
        image_size: side that images are resized to.

    Example:
        >>> data = FlowData("moons", "gaussians8", limit=100)
        >>> [len(data.transfer(seed=seed, many=20).train) for seed in (0, 1)]
        [100, 100]
    """

    def __init__(
        self, target: str, source: str, limit: int | None = None, image_size: int | None = None
    ) -> None:
        self.target, self.source = target, source
        self.limit, self.image_size = limit, image_size
        self._opened: dict[tuple[str, int | None], Split] = {}

    def transfer(self, *, seed: int, many: int) -> Transfer:
        """Both sides as one seed splits them.

        Args:
            seed: of draws and splits.
            many: reference points that are wanted, at most.

        Raises:
            UserError: if they cannot be read, have other dimensions, or too few points.
        """
        target = self._split(self.target, self.image_size, seed, many)
        if self.source == "gaussian":
            return _from_noise(target)
        side = self.image_size or (target.shape[-1] if target.is_image else None)
        source = self._split(self.source, side, seed + 10_000, many)
        if source.shape != target.shape:
            raise UserError(
                f"source and data must have one dimension, got {source.shape} ({self.source}) and "
                f"{target.shape} ({self.target})"
            )
        return Transfer(target, source, torch.zeros(1), torch.ones(1))

    def _split(self, name: str, image_size: int | None, seed: int, many: int) -> Samples:
        key = (name, image_size)
        if key not in self._opened:
            self._opened[key] = open_samples(name, image_size)
        return self._opened[key](seed, self.limit, many)


def _from_noise(target: Samples) -> Transfer:
    if target.is_image:
        return Transfer(target, None, torch.zeros(1), torch.ones(1))
    return Transfer(target, None, target.train.mean(0), target.train.std(0).clamp(min=1e-6))
