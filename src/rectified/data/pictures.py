"""Image files to pixels, through Pillow.

Grey pictures (modes 1, L, LA, and 16-bit grey, of which the upper 8 bits count) become one channel,
all others RGB; where both kinds meet in a data set, grey ones get three equal channels.
Transparency is dropped. Decoding is serial on purpose: for pictures of 32x32, threads lose more to
Python's lock than they gain (0.09 ms per picture serial, 0.13 ms with two threads).
"""

import warnings
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from rectified.errors import UserError, first_line

if TYPE_CHECKING:
    from PIL import Image

Picture = tuple[str, Path | BytesIO]  # where it lies, for messages; what Pillow opens


def decode(
    pictures: Iterable[Picture], count: int, *, image_size: int | None = None
) -> UInt8[Tensor, "count channels height width"]:
    """Decode pictures into one tensor.

    Args:
        pictures: `count` of them, at least one.
        count: known ahead, so that the pixels are held in memory once.
        image_size: side in pixels that pictures are resized to (bilinear); None keeps theirs.

    Raises:
        UserError: if a picture cannot be read, is larger than Pillow's limit against
            decompression bombs, or differs from the first one in size.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (4, 3), "red").save(file, "PNG")
        >>> pixels = decode([("memory", file)], 1)
        >>> pixels.shape, pixels[0, :, 0, 0].tolist()
        (torch.Size([1, 3, 3, 4]), [255, 0, 0])
    """
    pixels = np.empty((0, 0, 0, 0), np.uint8)
    for row, (place, file) in enumerate(pictures):
        picture = _to_array(_load(place, file), place, image_size)
        if row == 0:
            pixels = np.empty((count, *picture.shape), np.uint8)
        if picture.shape[1:] != pixels.shape[2:]:
            raise UserError(
                f"{place} is {_size(picture)}, the first picture {_size(pixels[0])}; "
                "give image_size to resize them all"
            )
        if len(picture) > pixels.shape[1]:
            pixels = pixels.repeat(3, axis=1)
        pixels[row] = picture
    return torch.from_numpy(pixels)


def resized(image: "Image.Image", side: int | None) -> "Image.Image":
    """Resize to `side` x `side` pixels (bilinear); None returns the image as it is.

    Example:
        >>> from PIL import Image
        >>> resized(Image.new("L", (4, 3)), 2).size
        (2, 2)
    """
    from PIL import Image

    return image if side is None else image.resize((side, side), Image.Resampling.BILINEAR)


def _load(place: str, file: Path | BytesIO) -> "Image.Image":
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{place} has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller or remove it"
        ) from error
    except Exception as error:  # Pillow's decoders raise errors of many kinds on broken files
        raise UserError(
            f"{place} cannot be read as an image ({first_line(error)}); mend or remove it"
        ) from error


def _to_array(
    image: "Image.Image", place: str, image_size: int | None
) -> UInt8[np.ndarray, "channels height width"]:
    from PIL import Image

    if image.mode == "F":
        raise UserError(f"{place} holds floating-point pixels; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        upper = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(upper.astype(np.uint8))
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    array = np.asarray(resized(image, image_size))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _size(picture: UInt8[np.ndarray, "channels height width"]) -> str:
    return f"{picture.shape[1]}x{picture.shape[2]}"
