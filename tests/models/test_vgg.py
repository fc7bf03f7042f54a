import pytest
from torch import nn

from rectified.errors import UserError
from rectified.models import vgg16, vgg19
from rectified.models.vgg import vgg


def build(factory=vgg16, side=32, **options):
    return factory(num_classes=10, in_channels=3, image_size=(side, side), **options)


@pytest.mark.parametrize(("factory", "convolutions"), [(vgg16, 13), (vgg19, 16)])
def test_convolutions_and_one_linear_layer(factory, convolutions):
    modules = list(build(factory).modules())
    assert sum(isinstance(m, nn.Conv2d) for m in modules) == convolutions
    assert sum(isinstance(m, nn.Linear) for m in modules) == 1


def test_widths_of_vgg16():
    widths = [m.out_channels for m in build().modules() if isinstance(m, nn.Conv2d)]
    assert widths == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


@pytest.mark.parametrize(
    ("norm", "numbers"),
    [
        (nn.BatchNorm2d, [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]),
        (None, [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]),
    ],
)
@pytest.mark.parametrize("side", [8, 32])
def test_layers_are_numbered_as_in_torchvision_at_every_size(side, norm, numbers):
    features = build(side=side, norm=norm).features
    assert [n for n, m in enumerate(features) if isinstance(m, nn.Conv2d)] == numbers


@pytest.mark.parametrize(("side", "pools"), [(1, 0), (8, 3), (32, 5)])
def test_pools_stop_at_one_place(side, pools):
    features = build(side=side).features
    assert sum(isinstance(m, nn.MaxPool2d) for m in features) == pools


def test_other_depths_are_refused():
    with pytest.raises(UserError, match="depth must be 16 or 19, got 11"):
        build(vgg, depth=11)
