"""ResNet-20 and VGG-small as binary networks use them.

Two things differ from the usual ones. Each convolution is followed by activation, *then* norm:

    y = norm(activation(conv(x))) + shortcut(x)        and no activation after the sum,

so that what the next convolution takes the sign of has mean zero; and there is a choice of one
shortcut per block or one per convolution (Bi-Real). With the default `conv=nn.Conv2d` these are the
networks in full precision; pass `conv=BinaryConv2d`, or hand one to `rectified.binary.convert`. The
first convolution (`stem`) and the classifier are arguments of their own, since they stay in full
precision by custom.

References:
    X.-M. Wu et al., "Estimator Meets Equilibrium Perspective: A Rectified Straight Through
    Estimator for Binary Neural Networks Training", 2023, arXiv:2308.06689, and its code.
    Z. Liu et al., "Bi-Real Net", 2018, arXiv:1808.00278.
"""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.models.initial import he_normal_
from rectified.models.resnet import PadChannels

Layer = Callable[..., nn.Module]

_VGG_SMALL = (128, 128, 256, 256, 512, 512)  # channels; a pool after every second


def one_bit_resnet(
    depth: int,
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    conv: Layer = nn.Conv2d,
    stem: Layer = nn.Conv2d,
    linear: Layer = nn.Linear,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bi_real: bool = False,
) -> "OneBitResNet":
    """Build a ResNet of 6n + 2 layers for small images, ready for 1-bit convolutions.

    Args:
        depth: number of layers, 6n + 2 with n at least 1.
        num_classes: number of logits.
        in_channels: channels of an image.
        image_size: height and width of an image; any size fits.
        conv: makes the convolutions in the blocks as `nn.Conv2d` does.
        stem: makes the first one.
        linear: makes the classifier as `nn.Linear` does.
        activation: makes the module between a convolution and its norm.
        bi_real: a shortcut around every convolution, not one around every two.

    Returns:
        Logits of images.

    Raises:
        UserError: if `depth` is not 6n + 2.

    Example:
        >>> model = one_bit_resnet20(num_classes=10, in_channels=3, image_size=(32, 32))
        >>> sum(p.numel() for name, p in model.named_parameters() if "conv" in name)
        267696
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise UserError(f"depth must be 6n + 2 with n at least 1, got {depth}")
    make = partial(OneBitBlock, conv=conv, activation=activation, bi_real=bi_real)
    model = OneBitResNet(in_channels, blocks, make, stem, activation, linear(64, num_classes))
    he_normal_(model)
    return model


one_bit_resnet20 = partial(one_bit_resnet, 20)


class OneBitResNet(nn.Module):
    """Three stages of blocks; made by `one_bit_resnet`."""

    def __init__(
        self,
        in_channels: int,
        blocks: int,
        block: Layer,
        stem: Layer,
        activation: Callable[[], nn.Module],
        classifier: nn.Module,
    ) -> None:
        super().__init__()
        self.conv1 = stem(in_channels, 16, 3, padding=1, bias=False)
        self.relu = activation()
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks, block)
        self.layer2 = _stage(16, 32, 2, blocks, block)
        self.layer3 = _stage(32, 64, 2, blocks, block)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.bn2 = nn.BatchNorm1d(64)
        self.fc = classifier

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        x = self.bn1(self.relu(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.bn2(self.avgpool(x).flatten(1)))


class OneBitBlock(nn.Module):
    """Two 3x3 convolutions, with one shortcut around both or one around each."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        conv: Layer,
        activation: Callable[[], nn.Module],
        bi_real: bool,
    ) -> None:
        super().__init__()
        self.bi_real = bi_real
        self.conv1 = conv(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.relu1 = activation()
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, bias=False)
        self.relu2 = activation()
        self.bn2 = nn.BatchNorm2d(outputs)
        fits = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if fits else PadChannels(outputs - inputs, stride)

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs lower narrower"]:
        first = self.bn1(self.relu1(self.conv1(x)))
        if self.bi_real:
            first = first + self.shortcut(x)
            return self.bn2(self.relu2(self.conv2(first))) + first
        return self.bn2(self.relu2(self.conv2(first))) + self.shortcut(x)


def _stage(inputs: int, outputs: int, stride: int, blocks: int, block: Layer) -> nn.Sequential:
    rest = (block(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(inputs, outputs, stride), *rest)


def vgg_small(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    conv: Layer = nn.Conv2d,
    stem: Layer = nn.Conv2d,
    linear: Layer = nn.Linear,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Build VGG-small: six 3x3 convolutions of 128 to 512 channels, one classifier.

    After every second convolution the image is pooled to half its side, while it has one.

    Args:
        num_classes: number of logits.
        in_channels: channels of an image.
        image_size: height and width of an image.
        conv: makes all convolutions but the first, as `nn.Conv2d` does.
        stem: makes the first one.
        linear: makes the classifier as `nn.Linear` does.
        activation: makes the module between a convolution and its norm.

    Returns:
        Logits of images.

    Example:
        >>> model = vgg_small(num_classes=10, in_channels=3, image_size=(32, 32))
        >>> sum(p.numel() for p in model.parameters())
        4660106
    """
    layers: list[nn.Module] = []
    channels, (height, width) = in_channels, image_size
    for number, outputs in enumerate(_VGG_SMALL):
        make = conv if number else stem
        layers += [make(channels, outputs, 3, padding=1, bias=False), activation()]
        layers.append(nn.BatchNorm2d(outputs))
        if number % 2 and min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        channels = outputs
    model = nn.Sequential(*layers, nn.Flatten(), linear(channels * height * width, num_classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # as the reference: variance 2 / (9 outputs)
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
