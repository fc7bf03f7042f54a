"""The U-Net: shapes, conditions, and what it sees."""

from __future__ import annotations

import pytest
import torch

from rectified.errors import UserError
from rectified.models import UNet
from tests.models.generative import stirred, unreached


def small(channels=1, **options):
    return UNet(channels, **{"widths": (8, 16), "blocks": 1, "heads": 2, **options})


@pytest.mark.parametrize(
    ("channels", "options", "side"),
    [
        (1, {}, (8, 8)),
        (3, {"widths": (16,)}, (5, 7)),
        (3, {"widths": (8, 16, 16), "blocks": 2}, (8, 12)),
        (2, {"attention": (0, 1)}, (4, 4)),
    ],
)
def test_images_of_every_shape_keep_it(channels, options, side):
    x = torch.randn(2, channels, *side)
    assert stirred(small(channels, **options))(x, torch.rand(2)).shape == x.shape


def test_it_begins_at_no_velocity():
    assert (small()(torch.randn(2, 1, 8, 8), torch.rand(2)) == 0).all()


def test_images_do_not_meet_in_a_batch():
    model = stirred(small(attention=(1,))).eval()
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    torch.testing.assert_close(model(x, t)[1:2], model(x[1:2], t[1:2]), rtol=1e-4, atol=1e-4)


def test_time_and_label_change_what_is_said():
    model = stirred(small(classes=3))
    x, t = torch.randn(1, 1, 8, 8).expand(4, 1, 8, 8), torch.full((4,), 0.3)
    found = model(x, t, torch.tensor([-1, 0, 1, 2]))
    assert len(found.unique(dim=0)) == 4
    torch.testing.assert_close(model(x, t)[0], found[0])
    assert not torch.allclose(model(x, t), model(x, t / 2))


def test_attention_sees_the_whole_image():
    """A pixel in one corner changes the other, which convolutions alone do not reach."""
    x = torch.randn(1, 1, 32, 32)
    other = x.clone()
    other[..., 0, 0] += 5
    t = torch.rand(1)
    seen = []
    for attention in ((), (0,)):
        model = stirred(UNet(1, widths=(8,), blocks=1, attention=attention, heads=2))
        for layer in model.modules():
            if isinstance(layer, torch.nn.GroupNorm):  # it sees the whole image too
                layer.forward = lambda x: x
        far = (model(x, t) - model(other, t))[..., -1, -1]
        seen.append(bool((far != 0).any()))
    assert seen == [False, True]


def test_gradients_reach_all_parameters():
    labels = torch.tensor([-1, 0, 1, 2])
    model = small(2, classes=3, attention=(1,))
    assert unreached(model, torch.randn(4, 2, 8, 8), labels) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(0), "in_channels, blocks and widths must be at least 1, got 0"),
        (lambda: small(blocks=0), "must be at least 1"),
        (lambda: small(widths=()), "must be at least 1"),
        (lambda: small(widths=(8, 0)), "must be at least 1"),
        (lambda: small(attention=(1,), heads=3), "heads must divide the channels, got 3 for 16"),
        (lambda: small(attention=(2,)), r"attention must name levels below 2, got \(2,\)"),
        (lambda: small(heads=0, attention=(1,)), "heads must be at least 1, got 0"),
        (
            lambda: small(widths=(8, 8, 8))(torch.zeros(1, 1, 6, 8), torch.zeros(1)),
            r"sides must be multiples of 4 in 3 levels, got \(6, 8\)",
        ),
    ],
)
def test_impossible_networks_and_images_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
