import pytest
import torch

from rectified.data import Augment
from rectified.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def naive(batch, pad, flip, generator):
    """Crop and mirror image by image, with the same draws."""
    shift = torch.randint(2 * pad + 1, (2, len(batch), 1), generator=generator)
    mirrored = (
        torch.rand(len(batch), 1, generator=generator) < 0.5 if flip else [False] * len(batch)
    )
    images = []
    for image, y, x, mirror in zip(batch, shift[0], shift[1], mirrored, strict=True):
        _, height, width = image.shape
        canvas = image.new_zeros(image.shape[0], height + 2 * pad, width + 2 * pad)
        canvas[:, pad : pad + height, pad : pad + width] = image
        crop = canvas[:, y : y + height, x : x + width]
        images.append(crop.flip(2) if mirror else crop)
    return torch.stack(images)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 2, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_augment_is_a_crop_of_the_padded_image_and_a_flip(pad, flip, dtype):
    batch = torch.randint(1, 255, (20, 3, 6, 5), generator=generator(1)).to(dtype)
    out = Augment(pad, flip)(batch, generator())
    assert out.dtype == dtype
    assert torch.equal(out, naive(batch, pad, flip, generator()))


def test_no_shift_and_no_flip_is_the_identity():
    batch = torch.rand(4, 1, 8, 8, generator=generator())
    assert torch.equal(Augment(0, flip=False)(batch, generator()), batch)


def test_about_half_of_the_images_are_mirrored():
    batch = torch.arange(3.0).expand(4000, 1, 1, 3)
    mirrored = Augment(0)(batch, generator())[:, 0, 0, 0] == 2
    assert abs(mirrored.double().mean() - 0.5) < 0.03  # four standard errors


def test_every_shift_is_as_likely():
    batch = torch.zeros(9000, 1, 3, 3)
    batch[:, :, 1, 1] = 1
    share = Augment(1, flip=False)(batch, generator()).mean((0, 1))
    torch.testing.assert_close(share, torch.full((3, 3), 1 / 9), atol=0.015, rtol=0)


def test_negative_pad_is_refused():
    with pytest.raises(UserError, match="pad must be at least 0, got -1"):
        Augment(-1)
