"""Residual networks for small images, as He et al. built them for CIFAR-10.

A 3x3 convolution, three stages of `n` blocks with 16, 32 and 64 channels, the mean over places, one
linear layer: 6n + 2 layers. A block computes

    y = relu(x' + norm(conv(relu(norm(conv(x))))))

where the shortcut x' is x itself, or what makes it fit at the two places where the image is halved:
a 1x1 convolution and a norm (`"projection"`), or every second pixel with channels of zeros added
(`"pad"`, the paper's option A, without weights). Parameters are named as in torchvision's ResNets.

References:
    K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2015,
    arXiv:1512.03385, section 4.2.
    H. Zhang, Y. N. Dauphin, T. Ma, "Fixup Initialization: Residual Learning Without Normalization",
    2019, arXiv:1901.09321.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError, choose
from rectified.models.initial import he_normal_

Layer = Callable[..., nn.Module]


def resnet(
    depth: int,
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    activation: Callable[[], nn.Module] = nn.ReLU,
    conv: Layer = nn.Conv2d,
    linear: Layer = nn.Linear,
    norm: Layer | None = nn.BatchNorm2d,
    shortcut: str = "projection",
) -> "ResNet":
    """Build a ResNet for small images; `resnet20`, `resnet32` and `resnet56` are given depths.

    Args:
        depth: number of layers, 6n + 2 with n at least 1.
        num_classes: number of logits.
        in_channels: channels of an image.
        image_size: height and width of an image; any size fits.
        activation: makes each activation.
        conv: makes a convolution as `nn.Conv2d` does.
        linear: makes the classifier as `nn.Linear` does.
        norm: makes a normalisation from a number of channels; None for none: convolutions then
            have biases, and start as in Fixup (the last of each block at 0, the first scaled by
            `blocks ** -0.5`), else the signal would double with every block.
        shortcut: `"projection"` or `"pad"`.

    Returns:
        Logits of images.

    Raises:
        UserError: if `depth` is not 6n + 2, or `shortcut` is unknown.

    Example:
        >>> model = resnet20(num_classes=10, in_channels=3, image_size=(32, 32))
        >>> sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))
        271680
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise UserError(f"depth must be 6n + 2 with n at least 1, got {depth}")
    choose("shortcut", shortcut, ("projection", "pad"))
    layers = _Layers(activation, conv, norm, shortcut)
    model = ResNet(in_channels, blocks, layers, linear(64, num_classes))
    he_normal_(model)
    if norm is None:
        _fixup_(model)
    return model


resnet20 = partial(resnet, 20)
resnet32 = partial(resnet, 32)
resnet56 = partial(resnet, 56)


@dataclass(frozen=True)
class _Layers:
    """The layers that the network is made of."""

    activation: Callable[[], nn.Module]
    conv: Layer
    norm: Layer | None
    shortcut: str

    def convolution(self, inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
        bias = self.norm is None
        return self.conv(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias)

    def normalisation(self, channels: int) -> nn.Module:
        return self.norm(channels) if self.norm else nn.Identity()

    def fit(self, inputs: int, outputs: int, stride: int) -> nn.Module | None:
        """Return what makes a block's input fit its output, None if it does."""
        if stride == 1 and inputs == outputs:
            return None
        if self.shortcut == "pad":
            return PadChannels(outputs - inputs, stride)
        projection = self.convolution(inputs, outputs, 1, stride)
        return nn.Sequential(projection, self.normalisation(outputs))


class ResNet(nn.Module):
    """A residual network of three stages; made by `resnet`."""

    def __init__(self, in_channels: int, blocks: int, layers: _Layers, classifier: nn.Module):
        super().__init__()
        self.conv1 = layers.convolution(in_channels, 16, 3)
        self.bn1 = layers.normalisation(16)
        self.relu = layers.activation()
        self.layer1 = _stage(16, 16, 1, blocks, layers)
        self.layer2 = _stage(16, 32, 2, blocks, layers)
        self.layer3 = _stage(32, 64, 2, blocks, layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = classifier

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, layers: _Layers) -> None:
        super().__init__()
        self.conv1 = layers.convolution(inputs, outputs, 3, stride)
        self.bn1 = layers.normalisation(outputs)
        self.relu1 = layers.activation()
        self.conv2 = layers.convolution(outputs, outputs, 3)
        self.bn2 = layers.normalisation(outputs)
        self.downsample = layers.fit(inputs, outputs, stride)
        self.relu2 = layers.activation()

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs lower narrower"]:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + (x if self.downsample is None else self.downsample(x)))


class PadChannels(nn.Module):
    """Keep every `stride`-th pixel and add channels of zeros, half of them on each side.

    Example:
        >>> PadChannels(16, stride=2)(torch.ones(1, 16, 32, 32)).shape
        torch.Size([1, 32, 16, 16])
    """

    def __init__(self, added: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = added, stride

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs lower narrower"]:
        before = self.added // 2
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, before, self.added - before))

    def extra_repr(self) -> str:
        return f"{self.added}, stride={self.stride}"


def _stage(inputs: int, outputs: int, stride: int, blocks: int, layers: _Layers) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, layers)
    rest = (BasicBlock(outputs, outputs, 1, layers) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


@torch.no_grad()
def _fixup_(model: ResNet) -> None:
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    for block in blocks:
        # L ** (-1 / (2m - 2)) with m = 2 layers per block (Zhang et al., 2019, section 3).
        block.conv1.get_parameter("weight").mul_(len(blocks) ** -0.5)
        block.conv2.get_parameter("weight").zero_()
