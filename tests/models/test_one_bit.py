import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.models import one_bit_resnet20, vgg_small
from rectified.models.one_bit import OneBitBlock, one_bit_resnet

SHAPE = {"num_classes": 10, "in_channels": 3, "image_size": (32, 32)}


@pytest.mark.parametrize("bi_real", [False, True])
def test_resnet20_has_the_layers_of_the_paper(bi_real):
    model = one_bit_resnet20(**SHAPE, bi_real=bi_real)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 19
    assert all(m.kernel_size == (3, 3) and m.bias is None for m in convolutions)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_bi_real_network_has_a_shortcut_around_every_convolution():
    """With convolutions that give nothing, what is left is the shortcuts: the image itself."""
    for bi_real in (False, True):
        block = OneBitBlock(4, 4, 1, conv=nn.Conv2d, activation=nn.ReLU, bi_real=bi_real).eval()
        x = torch.randn(1, 4, 5, 5)
        nn.init.zeros_(block.conv2.weight)
        alone = block(x)
        if not bi_real:
            assert torch.allclose(alone, x)
        else:
            first = block.bn1(block.relu1(block.conv1(x)))
            assert torch.allclose(alone, first + x)


def test_only_the_blocks_take_the_given_convolution():
    class Own(nn.Conv2d):
        pass

    for model, count in (
        (one_bit_resnet20(**SHAPE, conv=Own), 18),
        (vgg_small(**SHAPE, conv=Own), 5),
    ):
        assert sum(isinstance(m, Own) for m in model.modules()) == count


@pytest.mark.parametrize(("size", "inputs"), [((32, 32), 8192), ((8, 8), 512), ((1, 1), 512)])
def test_vgg_small_takes_other_sizes(size, inputs):
    model = vgg_small(num_classes=3, in_channels=1, image_size=size)
    assert model[-1].in_features == inputs
    assert model(torch.randn(2, 1, *size)).shape == (2, 3)


def test_vgg_small_starts_as_the_reference():
    """Normal weights of variance 2 / (9 outputs)."""
    weight = vgg_small(**SHAPE)[14].weight
    assert weight.shape == (512, 256, 3, 3)
    assert weight.var().item() == pytest.approx(2 / (9 * 512), rel=0.02)


@pytest.mark.parametrize("depth", [19, 2, 0])
def test_a_depth_that_no_network_has_is_named(depth):
    with pytest.raises(UserError, match=f"depth must be 6n \\+ 2 with n at least 1, got {depth}"):
        one_bit_resnet(depth, **SHAPE)
