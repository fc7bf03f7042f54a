"""Labelled images in memory: 8-bit pixels, one shape, three splits.

`Images` is one split, `ImageData` a data set of three. Pixels stay as the files hold them,
`uint8` in 0..peak, four times smaller than floating point; `pixels / peak` lies in [0, 1]. The peak
is 255 for image files and 16 for the digits that come with scikit-learn.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from rectified.errors import UserError


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one shape with one label each.

    Args:
        pixels: in 0..peak.
        labels: class numbers, from 0; one per image.
        peak: the pixel value that means 1.0, in 1..255.

    Raises:
        UserError: if there is not one label an image, a label is negative, or a pixel is above
            the peak.

    Example:
        >>> images = Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1]))
        >>> len(images), images.select(torch.tensor([2, 0])).labels.tolist()
        (3, [1, 0])
    """

    pixels: UInt8[Tensor, "images channels height width"]
    labels: Int64[Tensor, " labels"]
    peak: int = 255

    def __post_init__(self) -> None:
        if not 1 <= self.peak <= 255:
            raise UserError(f"peak must be in 1..255, got {self.peak}")
        if len(self.pixels) != len(self.labels):
            raise UserError(
                f"labels must be one an image, got {len(self.labels)} for {len(self.pixels)} images"
            )
        if len(self) and self.labels.min() < 0:
            raise UserError(f"labels must be at least 0, got {self.labels.min().item()}")
        if self.peak < 255 and len(self) and self.pixels.max() > self.peak:
            raise UserError(f"pixels must be in 0..{self.peak}, got {self.pixels.max().item()}")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Int64[Tensor, " chosen"]) -> "Images":
        """Return the images at `indices`, in that order."""
        return Images(self.pixels[indices], self.labels[indices], self.peak)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for classification: three splits over the same classes.

    Args:
        name: for tables and file names: `"digits"`.
        classes: the name of each class, by number.
        train: what is learnt from; holds two classes or more.
        validation: what choices are made on; may be empty.
        test: what is reported.

    Raises:
        UserError: if there is one class only, a label lies outside the classes, or the splits
            differ in shape or peak.

    Example:
        >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
        >>> images = Images(pixels, torch.tensor([0, 1]))
        >>> data = ImageData("two", ("black", "white"), images, images, images)
        >>> data.channels, data.mean.tolist(), data.std.tolist()
        (1, [0.5], [0.5])
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    validation: Images
    test: Images

    def __post_init__(self) -> None:
        for split in ("train", "validation", "test"):
            self._check(split, getattr(self, split))
        if len(self.train.labels.unique()) < 2:
            raise UserError(f"{self.name}: train must hold at least two classes, got one")

    def _check(self, split: str, images: Images) -> None:
        if len(images) and images.labels.max() >= len(self.classes):
            raise UserError(
                f"{self.name}: labels of {split} must be below the number of classes "
                f"({len(self.classes)}), got {images.labels.max().item()}"
            )
        shape, expected = images.pixels.shape[1:], self.train.pixels.shape[1:]
        if shape != expected:
            raise UserError(
                f"{self.name}: images of {split} are {_times(shape)}, those of train "
                f"{_times(expected)}; give image_size to resize them all"
            )
        if images.peak != self.train.peak:
            raise UserError(
                f"{self.name}: peak must be one for all splits, "
                f"got {images.peak} in {split} and {self.train.peak} in train"
            )

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.train.pixels.shape[1]

    @property
    def height(self) -> int:
        """In pixels."""
        return self.train.pixels.shape[2]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.train.pixels.shape[3]

    @property
    def mean(self) -> Float[Tensor, " channels"]:
        """Mean of each channel over the training images, in [0, 1]."""
        return self._moments[0]

    @property
    def std(self) -> Float[Tensor, " channels"]:
        """Standard deviation of each channel over the training images, in [0, 1].

        It is 1 where a channel is constant, so that standardising by it stays finite.
        """
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        # Moments of the histogram are exact and need no copy of the pixels in floating point.
        values = torch.arange(256, dtype=torch.float64) / self.train.peak
        shares = torch.stack([_histogram(c) for c in self.train.pixels.unbind(1)])
        mean = shares @ values
        variance = (shares * (values - mean[:, None]) ** 2).sum(1)
        std = torch.where(variance > 0, variance.sqrt(), 1.0)
        return mean.float(), std.float()


def _histogram(pixels: UInt8[Tensor, "n height width"]) -> Float[Tensor, "256"]:
    return torch.bincount(pixels.flatten(), minlength=256).double() / pixels.numel()


def _times(shape: torch.Size) -> str:
    return "x".join(str(side) for side in shape)
