import io

import numpy as np
import pytest
import torch
from PIL import Image

from rectified.data.pictures import decode
from rectified.errors import UserError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


def picture(array, mode=None, kind="PNG"):
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, kind)
    file.seek(0)
    return file


def decoded(*files, image_size=None):
    numbered = [(f"picture {number}", file) for number, file in enumerate(files)]
    return decode(numbered, len(files), image_size=image_size)


def test_grey_keeps_one_channel():
    assert np.array_equal(decoded(picture(GREY))[0, 0], GREY)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_has_three_channels_and_no_transparency(mode):
    assert np.array_equal(decoded(picture(COLOUR, mode))[0].permute(1, 2, 0), COLOUR)


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("P", 3)])
def test_other_modes_become_grey_or_colour(mode, channels):
    assert decoded(picture(GREY, mode)).shape == (1, channels, 3, 4)


def test_cmyk_becomes_colour():
    assert decoded(picture(COLOUR, "CMYK", "TIFF")).shape == (1, 3, 3, 4)


def test_the_upper_bits_of_16_bit_grey_count():
    deep = GREY.astype(np.uint16) * 256 + 255
    assert np.array_equal(decoded(picture(deep))[0, 0], GREY)


@pytest.mark.parametrize("order", [1, -1])
def test_grey_among_colour_gets_three_equal_channels(order):
    pixels = decoded(*[picture(GREY), picture(COLOUR)][::order])
    grey = pixels[0 if order == 1 else 1]
    assert pixels.shape == (2, 3, 3, 4)
    assert all(np.array_equal(channel, GREY) for channel in grey)


def test_resizing_makes_sizes_equal_and_keeps_flat_areas():
    small, large = np.full((2, 3), 90, np.uint8), np.full((9, 5), 200, np.uint8)
    pixels = decoded(picture(small), picture(large), image_size=4)
    assert pixels.shape == (2, 1, 4, 4)
    assert pixels.unique().tolist() == [90, 200]
    assert pixels.dtype == torch.uint8


def test_different_sizes_are_refused():
    with pytest.raises(UserError, match="picture 1 is 4x3, the first picture 3x4; give image_size"):
        decoded(picture(GREY), picture(np.ascontiguousarray(GREY.T)))


@pytest.mark.parametrize("kept", [0, 4, 60])
def test_a_broken_picture_is_named(kept):
    broken = io.BytesIO(picture(COLOUR).getvalue()[:kept])
    with pytest.raises(UserError, match="picture 1 cannot be read as an image"):
        decoded(picture(COLOUR), broken)


@pytest.mark.parametrize("limit", [11, 5])
def test_a_decompression_bomb_is_refused(monkeypatch, limit):
    # Pillow warns above its limit and raises above twice as much; neither gets through.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=f"picture 0 has more than {limit} pixels"):
        decoded(picture(GREY))


def test_floating_point_pixels_are_refused():
    with pytest.raises(UserError, match="picture 0 holds floating-point pixels"):
        decoded(picture(GREY.astype(np.float32), kind="TIFF"))
