import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rectified.errors import UserError
from rectified.models import resnet20, resnet32, resnet56
from rectified.models.resnet import PadChannels, resnet

CIFAR = {"num_classes": 10, "in_channels": 3, "image_size": (32, 32)}


@pytest.mark.parametrize(("factory", "depth"), [(resnet20, 20), (resnet32, 32), (resnet56, 56)])
def test_depth_counts_the_layers_on_the_longest_way(factory, depth):
    named = factory(**CIFAR).named_modules()
    layers = [n for n, m in named if isinstance(m, nn.Conv2d | nn.Linear) and "down" not in n]
    assert len(layers) == depth


@pytest.mark.parametrize(
    ("shortcut", "extra"), [("pad", 0), ("projection", 16 * 32 + 32 * 64 + 192)]
)
@pytest.mark.parametrize("blocks", [3, 9])
def test_number_of_parameters(blocks, shortcut, extra):
    model = resnet(6 * blocks + 2, **CIFAR, shortcut=shortcut)
    convolutions = 9 * (3 * 16 + (2 * blocks) * 16**2 + 16 * 32 + (2 * blocks - 1) * 32**2)
    convolutions += 9 * (32 * 64 + (2 * blocks - 1) * 64**2)
    norms = 2 * (16 + 2 * blocks * (16 + 32 + 64))
    expected = convolutions + norms + 64 * 10 + 10 + extra
    assert sum(p.numel() for p in model.parameters()) == expected


def test_parameters_are_named_as_in_torchvision():
    names = set(resnet20(**CIFAR).state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer1.2.bn2.weight",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.bias",
        "layer3.2.conv2.weight",
        "fc.weight",
        "fc.bias",
    } <= names
    assert {name.split(".")[0] for name in names} == {
        *("conv1", "bn1", "layer1", "layer2", "layer3", "fc")
    }


def functional(state, x, shortcut):
    """The same network written out, from its weights alone."""

    def normed(name, x):
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])

    x = normed("bn1", F.conv2d(x, state["conv1.weight"], padding=1)).relu()
    for stage in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(normed(f"{name}.bn1", y).relu(), state[f"{name}.conv2.weight"], padding=1)
            if stride == 2 and shortcut == "projection":
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2)
                x = normed(f"{name}.downsample.1", x)
            elif stride == 2:
                zeros = torch.zeros_like(x[:, ::2, ::2, ::2])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            x = (normed(f"{name}.bn2", y) + x).relu()
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_resnet20_computes_its_formula(shortcut):
    generator = torch.Generator().manual_seed(0)
    model = resnet20(**CIFAR, shortcut=shortcut).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(model(x), functional(model.state_dict(), x, shortcut))


def test_without_norm_blocks_start_as_the_identity_after_a_rectifier():
    model = resnet20(**CIFAR, norm=None)
    x = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.layer1(x), x)


def test_without_norm_first_convolutions_are_scaled_by_the_depth():
    weight = resnet56(**CIFAR, norm=None).layer3[4].conv1.weight
    expected = 2 / (9 * 64) / 27
    assert abs(weight.var().item() / expected - 1) < 0.05


def test_pad_channels_keeps_the_norm_of_the_pixels_kept():
    x = torch.rand(2, 4, 7, 5, generator=torch.Generator().manual_seed(0))
    out = PadChannels(5, stride=2)(x)
    assert out.shape == (2, 9, 4, 3)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out.sum() == out[:, 2:6].sum()
    assert "stride=2" in repr(PadChannels(5, stride=2))


@pytest.mark.parametrize("depth", [2, 21])
def test_other_depths_are_refused(depth):
    with pytest.raises(UserError, match=rf"depth must be 6n \+ 2 with n at least 1, got {depth}"):
        resnet(depth, **CIFAR)


def test_unknown_shortcuts_are_refused():
    with pytest.raises(UserError, match="unknown shortcut 'none'; choose from projection, pad"):
        resnet20(**CIFAR, shortcut="none")
