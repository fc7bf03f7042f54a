import math

import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.models import cnn, mlp, resnet20, resnet32, resnet56, vgg16, vgg19, vit
from rectified.models.initial import he_normal_

SHAPES = {"num_classes": 7, "in_channels": 3}
CONVOLUTIONAL = [cnn, resnet20, resnet32, resnet56, vgg16, vgg19]
ALL = [mlp, *CONVOLUTIONAL, vit]


class MyLinear(nn.Linear):
    """A linear layer of another type."""


class MyConv2d(nn.Conv2d):
    """A convolution of another type."""


def build(factory, image_size=(8, 8), seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return factory(image_size=image_size, **SHAPES, **options)


def images(count=4, image_size=(8, 8)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *image_size, generator=generator)


def types(model):
    return {type(module) for module in model.modules()}


# All classifiers


@pytest.mark.parametrize("image_size", [(8, 8), (32, 32), (12, 20)])
@pytest.mark.parametrize("factory", ALL)
def test_logits_are_one_a_class_at_every_size(factory, image_size):
    model = build(factory, image_size).eval()
    assert model(images(2, image_size)).shape == (2, 7)


@pytest.mark.parametrize("factory", ALL)
def test_every_parameter_learns(factory):
    model = build(factory)
    model(images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("factory", ALL)
def test_the_seed_decides_the_weights(factory):
    first, again, other = (build(factory, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("factory", ALL)
def test_activation_and_linear_are_the_callers(factory):
    found = types(build(factory, activation=nn.SiLU, linear=MyLinear))
    assert {nn.SiLU, MyLinear} <= found
    assert not {nn.ReLU, nn.GELU, nn.Linear} & found


@pytest.mark.parametrize("factory", [*CONVOLUTIONAL, vit])
def test_convolutions_are_the_callers(factory):
    found = types(build(factory, conv=MyConv2d))
    assert MyConv2d in found
    assert nn.Conv2d not in found


@pytest.mark.parametrize("factory", CONVOLUTIONAL)
def test_without_norm_there_is_none_but_biases(factory):
    model = build(factory, norm=None)
    assert nn.BatchNorm2d not in types(model)
    assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))
    # Without normalisation over the batch, an image's logits do not depend on its neighbours.
    torch.testing.assert_close(model(images())[:1], model(images()[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factory", CONVOLUTIONAL)
def test_the_signal_neither_dies_nor_explodes_without_norm(factory):
    logits = build(factory, (32, 32), norm=None)(images(16, (32, 32)))
    assert 0.03 < logits.square().mean().sqrt() < 30


# Multilayer perceptron and conv net


def test_mlp_computes_its_formula():
    model = build(mlp, widths=(5,)).double()
    x, (one, two) = images().double(), (model[1], model[3])
    hidden = (x.flatten(1) @ one.weight.T + one.bias).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ two.weight.T + two.bias)


def test_mlp_without_hidden_layers_is_linear():
    assert [type(m) for m in build(mlp, widths=())] == [nn.Flatten, nn.Linear]


def test_mlp_norm_stands_before_the_activation():
    model = build(mlp, widths=(5,), norm=nn.BatchNorm1d)
    assert [type(m) for m in model[1:4]] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]


@pytest.mark.parametrize(("side", "pools"), [(2, 0), (4, 1), (8, 2), (32, 3)])
def test_cnn_pools_while_the_image_is_large_enough(side, pools):
    model = build(cnn, (side, side))
    assert sum(isinstance(m, nn.MaxPool2d) for m in model) == pools


@pytest.mark.parametrize("factory", [mlp, cnn])
def test_widths_below_one_are_refused(factory):
    with pytest.raises(UserError, match=r"widths must be at least 1, got \(4, 0\)"):
        build(factory, widths=(4, 0))


def test_cnn_without_blocks_is_refused():
    with pytest.raises(UserError, match="at least one block"):
        build(cnn, widths=())


# Initial weights


@pytest.mark.parametrize(
    ("layer", "fan_in"), [(nn.Linear(300, 400), 300), (nn.Conv2d(50, 80, 3), 450)]
)
def test_he_normal_has_variance_two_over_fan_in_and_no_bias(layer, fan_in):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        he_normal_(layer)
    assert math.isclose(layer.weight.var().item(), 2 / fan_in, rel_tol=0.05)
    assert not layer.bias.any()


def test_he_normal_leaves_norms_and_missing_biases_alone():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3))
    assert he_normal_(model)[1].weight.tolist() == [1, 1, 1]
