"""One door to labelled images: the embedded digits, files of yours, or a data set of the hub.

What a source means is decided in this order:

1. `"digits"` is the set of 1,797 handwritten digits, 1x8x8, that comes with scikit-learn
   (for a folder of that name write `"./digits"`);
2. a path that exists is a parquet file, a folder with parquet files (`rectified.data.parquet`), or
   a folder with a folder of images for each class (`rectified.data.folder`);
3. `"owner/name"` is a data set of the Hugging Face hub (`rectified.data.hub`).

A test split that the source lacks is cut from train (20 %), then likewise the validation split,
then train is limited. All three draws are stratified and depend on the seed alone, so a limit
changes neither test nor validation.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from rectified import seeds
from rectified.data.folder import folder_splits
from rectified.data.hub import hub_splits
from rectified.data.images import ImageData, Images
from rectified.data.parquet import parquet_splits
from rectified.data.pictures import resized
from rectified.data.splits import cut, stratified
from rectified.data.stored import Stored
from rectified.errors import UserError

_TEST_SHARE = 0.2
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")

Rows = dict[str, tuple[str, Int64[Tensor, " rows"]]]  # split -> where it is stored, which rows


def load_images(
    source: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    validation: float = 0.1,
    image_size: int | None = None,
) -> ImageData:
    """Load a data set for classification.

    Args:
        source: `"digits"`, a path, or the name of a data set of the hub; see above.
        seed: decides which images form test and validation, and which a limit keeps; at least 0.
        limit: largest number of training images; at least the number of classes. None: all.
        validation: share of train to cut off if the source has no validation split, in [0, 1).
        image_size: side in pixels that pictures are resized to; None keeps theirs.

    Returns:
        Three splits; validation is empty if `validation` is 0 and the source has none.

    Raises:
        UserError: if an argument breaks its rule, or the source cannot be found or read.

    Example:
        >>> data = load_images("digits", seed=0, limit=500)
        >>> len(data.train), len(data.validation), len(data.test)
        (500, 144, 359)
        >>> data.channels, data.height, data.width, data.train.peak
        (1, 8, 8, 16)
    """
    _check(seed, validation, image_size)
    return _split(source, *_open(source, image_size), seed, limit, validation)


class ImageSource:
    """A source that is opened once, and whose pictures are decoded once, for many seeds.

    Args:
        source: as in `load_images`.
        image_size: as there.

    Example:
        >>> source = ImageSource("digits")
        >>> [len(source.load(seed=seed, limit=500).train) for seed in (0, 1)]
        [500, 500]
    """

    def __init__(self, source: str, image_size: int | None = None) -> None:
        self.source, self.image_size = source, image_size
        self._name = uuid4().hex
        self._opened: tuple[str, dict[str, Stored]] | None = None

    def load(
        self, *, seed: int = 0, limit: int | None = None, validation: float = 0.1
    ) -> ImageData:
        """Load the splits, as `load_images`.

        Raises:
            UserError: as there.
        """
        _check(seed, validation, self.image_size)
        if self._opened is None:
            name, stored = _open(self.source, self.image_size)
            self._opened = name, {split: one.remembering() for split, one in stored.items()}
        return _split(self.source, *self._opened, seed, limit, validation)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process is sent no pixels: it decodes for itself, and once."""
        return _sent, (self.source, self.image_size, self._name)


@lru_cache(maxsize=1)
def _sent(source: str, image_size: int | None, _name: str) -> ImageSource:
    return ImageSource(source, image_size)


def _check(seed: int, validation: float, image_size: int | None) -> None:
    if seed < 0:
        raise UserError(f"seed must be at least 0, got {seed}")
    if not 0 <= validation < 1:
        raise UserError(f"validation must be in [0, 1), got {validation}")
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size must be at least 1, got {image_size}")


def _split(
    source: str,
    name: str,
    stored: dict[str, Stored],
    seed: int,
    limit: int | None,
    validation: float,
) -> ImageData:
    present = np.unique(stored["train"].labels)
    if len(present) < 2:
        raise UserError(f"{source} must hold at least two classes, got {present.tolist()}")
    labels = {split: rows.numbered(stored["train"], split) for split, rows in stored.items()}
    rows = _deal(labels, seed, limit, validation)
    return ImageData(name, stored["train"].classes, **_read(stored, labels, rows))


def _open(source: str, image_size: int | None) -> tuple[str, dict[str, Stored]]:
    if source == "digits":
        return source, _digits(image_size)
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        splits = parquet_splits(files, image_size=image_size) if files else None
        return path.resolve().name, splits or folder_splits(path, image_size=image_size)
    if path.is_file() and path.suffix == ".parquet":
        return path.stem, {"train": parquet_splits([path], image_size=image_size)["train"]}
    if not path.exists() and _HUB_NAME.fullmatch(source):
        return source, hub_splits(source, image_size=image_size)
    raise UserError(
        f"cannot load images from {source!r}; give 'digits', a parquet file, a folder of parquet "
        "files, a folder with a folder of images for each class, or a hub name 'owner/name'"
    )


def _digits(image_size: int | None) -> dict[str, Stored]:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = [Image.fromarray(image) for image in digits.images.astype(np.uint8)]
    pixels = torch.from_numpy(
        np.stack([np.asarray(resized(picture, image_size)) for picture in pictures])
    )
    return {"train": Stored(digits.target, lambda rows: pixels[rows].unsqueeze(1), peak=16)}


def _deal(
    labels: dict[str, Int64[Tensor, " n"]], seed: int, limit: int | None, validation: float
) -> Rows:
    """Decide which rows form each split, on the labels alone."""
    generator = seeds.generator(seed, "splits")
    rows = {split: (split, torch.arange(len(values))) for split, values in labels.items()}
    for split, share in (("test", _TEST_SHARE), ("validation", validation)):
        if split not in rows:
            train = rows["train"][1]
            kept, held_out = cut(labels["train"][train], share, generator)
            rows |= {"train": ("train", train[kept]), split: ("train", train[held_out])}
    train = rows["train"][1]
    if limit is not None and limit < len(train):
        kept = _limited(labels["train"][train], limit, generator)
        rows["train"] = ("train", train[kept])
    return rows


def _limited(
    labels: Int64[Tensor, " n"], limit: int, generator: torch.Generator
) -> Int64[Tensor, " limit"]:
    classes = len(labels.unique())
    if limit < classes:
        raise UserError(f"limit must be at least the number of classes ({classes}), got {limit}")
    return stratified(labels, limit, generator)


def _read(
    stored: dict[str, Stored], labels: dict[str, Int64[Tensor, " n"]], rows: Rows
) -> dict[str, Images]:
    pixels = {split: stored[at].read(chosen) for split, (at, chosen) in rows.items() if len(chosen)}
    channels = max(images.shape[1] for images in pixels.values())
    empty = pixels["train"][:0]
    return {
        split: Images(
            _with_channels(pixels.get(split, empty), channels),
            labels[at][chosen],
            stored[at].peak,
        )
        for split, (at, chosen) in rows.items()
    }


def _with_channels(
    pixels: UInt8[Tensor, "n _ height width"], channels: int
) -> UInt8[Tensor, "n {channels} height width"]:
    """Repeat the grey channel where another split has colour."""
    return pixels if pixels.shape[1] == channels else pixels.repeat(1, channels, 1, 1)
