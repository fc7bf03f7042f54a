"""The diffusion transformer: shapes, conditions, and what it sees."""

from __future__ import annotations

import pytest
import torch

from rectified.errors import UserError
from rectified.models import DiT
from tests.models.generative import stirred, unreached


def small(shape=(1, 8, 8), **options):
    return DiT(shape, **{"patch": 2, "width": 16, "blocks": 2, "heads": 2, **options})


@pytest.mark.parametrize(
    ("shape", "patch"), [((1, 8, 8), 2), ((3, 4, 8), 4), ((2, 5, 5), 1), ((1, 6, 9), 3)]
)
def test_images_of_every_shape_keep_it(shape, patch):
    x = torch.randn(2, *shape)
    assert stirred(small(shape, patch=patch))(x, torch.rand(2)).shape == x.shape


def test_it_begins_at_no_velocity():
    assert (small()(torch.randn(2, 1, 8, 8), torch.rand(2)) == 0).all()


def test_patches_are_put_back_where_they_were():
    """Without attention, a patch of the output depends on the same patch of the input alone."""
    model = stirred(small())
    for block in model.blocks:
        torch.nn.init.zeros_(block.outputs.weight)
    x = torch.randn(1, 1, 8, 8)
    other = x.clone()
    other[..., 2:4, 4:6] += 1
    t = torch.rand(1)
    changed = (model(x, t) != model(other, t))[0, 0]
    assert changed[2:4, 4:6].all()
    assert changed.sum() == 4


def test_every_patch_sees_every_other():
    model = stirred(small())
    x = torch.randn(1, 1, 8, 8)
    other = x.clone()
    other[..., 0, 0] += 5
    t = torch.rand(1)
    assert (model(x, t) != model(other, t)).all()


def test_images_do_not_meet_in_a_batch():
    model = stirred(small())
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    torch.testing.assert_close(model(x, t)[1:2], model(x[1:2], t[1:2]), rtol=1e-4, atol=1e-5)


def test_time_and_label_change_what_is_said():
    model = stirred(small(classes=3))
    x, t = torch.randn(1, 1, 8, 8).expand(4, 1, 8, 8), torch.full((4,), 0.3)
    found = model(x, t, torch.tensor([-1, 0, 1, 2]))
    assert len(found.unique(dim=0)) == 4
    torch.testing.assert_close(model(x, t)[0], found[0])
    assert not torch.allclose(model(x, t), model(x, t / 2))


def test_gradients_reach_all_parameters():
    labels = torch.tensor([-1, 0, 1, 2])
    model = small((2, 8, 8), classes=3)
    assert unreached(model, torch.randn(4, 2, 8, 8), labels) == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(patch=3), "patches must tile the image, got 3 for 8x8"),
        (lambda: small(patch=0), "patches must tile the image, got 0"),
        (lambda: small(heads=3), "heads must divide an even width, got 3 for 16"),
        (lambda: small(width=15, heads=3), "heads must divide an even width"),
        (lambda: small(heads=0), "heads must divide an even width, got 0 for 16"),
        (
            lambda: small()(torch.zeros(1, 1, 4, 4), torch.zeros(1)),
            r"images must be of shape \(1, 8, 8\), got \(1, 4, 4\)",
        ),
    ],
)
def test_impossible_networks_and_images_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
