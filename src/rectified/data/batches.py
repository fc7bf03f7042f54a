"""Batches of images, the same on every device and from every starting point.

The order and the augmentation of epoch `e` follow from `(seed, e)` alone: a run that resumes at
epoch 7 sees what an uninterrupted one saw. All draws of an epoch come from a CPU generator and
travel to the device at once, so a GPU sees the same data as a CPU and never waits for one. Pixels
live on the device as `uint8` and become floating point batch by batch:

    x = (augment(pixels) / peak - mean) / std
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from rectified import seeds
from rectified.data.augment import Augment
from rectified.data.images import Images
from rectified.errors import UserError


class Batches:
    """Batches of images, epoch by epoch.

    Args:
        images: at least one.
        size: images per batch, at least 1.
        seed: of the order and the augmentation, at least 0.
        shuffle: whether the order is random. A last short batch is then dropped, unless it is the
            only one, so that all updates average over as many images; in order it is kept.
        augment: changes the raw pixels of each batch; meant for training images only.
        mean: what to subtract from each channel, in the unit of [0, 1]; None: nothing.
        std: what to divide each channel by, above 0; None: nothing.
        device: where pixels are held and batches are made.

    Raises:
        UserError: if there is no image, or `size`, `seed` or `std` breaks its rule.

    Example:
        >>> pixels = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
        >>> batches = Batches(Images(pixels, torch.arange(10), peak=10), 4, seed=0)
        >>> [labels.tolist() for _, labels in batches.epoch(3)]
        [[2, 6, 7, 1], [4, 8, 9, 0]]
    """

    def __init__(
        self,
        images: Images,
        size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: Augment | None = None,
        mean: Float[Tensor, " channels"] | None = None,
        std: Float[Tensor, " channels"] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not len(images):
            raise UserError("images must hold at least one image, got none")
        if size < 1:
            raise UserError(f"size must be at least 1, got {size}")
        if seed < 0:
            raise UserError(f"seed must be at least 0, got {seed}")
        if std is not None and not (std > 0).all():
            raise UserError(f"std must be above 0 for each channel, got {std.tolist()}")
        self.size, self.seed, self.shuffle, self.augment = size, seed, shuffle, augment
        self.pixels, self.labels = images.pixels.to(device), images.labels.to(device)
        self.peak = images.peak
        self.mean = None if mean is None else mean.to(device)[:, None, None]
        self.std = None if std is None else std.to(device)[:, None, None]

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self.labels), self.size)
        return full + 1 if rest and (not full or not self.shuffle) else full

    def __iter__(
        self,
    ) -> Iterator[tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]]:
        """Iterate over epoch 0, each time anew."""
        return self.epoch(0)

    def epoch(
        self, number: int
    ) -> Iterator[tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]]:
        """Iterate over the batches of one epoch.

        Args:
            number: of the epoch, from 0.

        Returns:
            Images, standardised, and their class numbers.
        """
        draws = self.draws(number)
        for first in range(0, len(draws.rows), self.size):
            yield self.make(draws.at(slice(first, first + self.size)))

    def draws(self, number: int) -> "Draws":
        """Everything that is random in an epoch, drawn at once and sent to the device at once."""
        generator = seeds.generator(self.seed, number, "batches")
        count = len(self.labels)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        order = order[: len(self) * self.size]
        device = self.labels.device
        if self.augment is None:
            return Draws(order.to(device), ())
        sizes = [len(rows) for rows in order.split(self.size)]
        drawn = [self.augment.draw(size, generator) for size in sizes]
        return Draws(
            order.to(device), tuple(torch.cat(one).to(device) for one in zip(*drawn, strict=True))
        )

    def make(
        self, draws: "Draws"
    ) -> tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]:
        """Make a batch of what was drawn for it, without a wait of the host."""
        pixels = self.pixels[draws.rows]
        if self.augment is not None:
            shift, mirrored = draws.augmentation
            pixels = self.augment.apply(pixels, (shift, mirrored))
        return self._standardised(pixels), self.labels[draws.rows]

    def _standardised(
        self, pixels: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        x = pixels / self.peak
        x = x if self.mean is None else x - self.mean
        return x if self.std is None else x / self.std


@dataclass(frozen=True)
class Draws:
    """The random draws of some examples, a row each.

    Attributes:
        rows: which images they are.
        augmentation: what `Augment.draw` drew for them; nothing without augmentation.
    """

    rows: Int64[Tensor, " examples"]
    augmentation: tuple[Tensor, ...]

    def at(self, places: slice | Int64[Tensor, " chosen"]) -> "Draws":
        """Those of some examples only."""
        return Draws(self.rows[places], tuple(one[places] for one in self.augmentation))

    def tensors(self) -> tuple[Tensor, ...]:
        """All of it, in a fixed order."""
        return (self.rows, *self.augmentation)
