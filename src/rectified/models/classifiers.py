"""Two small classifiers that train in seconds on a CPU: a multilayer perceptron and a conv net."""

from collections.abc import Callable, Sequence

from torch import nn

from rectified.errors import UserError
from rectified.models.initial import he_normal_

Layer = Callable[..., nn.Module]


def mlp(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    widths: Sequence[int] = (64, 64),
    activation: Callable[[], nn.Module] = nn.ReLU,
    linear: Layer = nn.Linear,
    norm: Layer | None = None,
) -> nn.Sequential:
    """Build a multilayer perceptron on the pixels: flatten, (linear, norm, activation)*, linear.

    Args:
        num_classes: number of logits.
        in_channels: channels of an image.
        image_size: height and width of an image.
        widths: neurons of each hidden layer; empty for a linear classifier.
        activation: makes the module after each hidden layer.
        linear: makes a layer from its numbers of inputs and outputs.
        norm: makes a normalisation from a number of neurons: `nn.BatchNorm1d`; None for none.

    Returns:
        Logits of images.

    Raises:
        UserError: if a width is below 1.

    Example:
        >>> model = mlp(num_classes=10, in_channels=1, image_size=(8, 8))
        >>> sum(p.numel() for name, p in model.named_parameters() if "weight" in name)
        8832
    """
    _check(widths)
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = in_channels * image_size[0] * image_size[1]
    for width in widths:
        layers += [linear(inputs, width), *([norm(width)] if norm else []), activation()]
        inputs = width
    model = nn.Sequential(*layers, linear(inputs, num_classes))
    he_normal_(model)
    return model


def cnn(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    widths: Sequence[int] = (16, 32, 64),
    activation: Callable[[], nn.Module] = nn.ReLU,
    conv: Layer = nn.Conv2d,
    linear: Layer = nn.Linear,
    norm: Layer | None = nn.BatchNorm2d,
) -> nn.Sequential:
    """Build a plain conv net: (3x3 convolution, norm, activation, 2x2 pool)*, mean, linear.

    An image is pooled only while its shorter side is at least 4, so that the last layers still see
    more than one place: twice for 8x8, in all three blocks for 32x32.

    Args:
        num_classes: number of logits.
        in_channels: channels of an image.
        image_size: height and width of an image.
        widths: channels of each block, at least one.
        activation: makes the module after each convolution.
        conv: makes a convolution as `nn.Conv2d` does.
        linear: makes the classifier as `nn.Linear` does.
        norm: makes a normalisation from a number of channels; None for none, with biases then.

    Returns:
        Logits of images.

    Raises:
        UserError: if there is no block, or a width is below 1.

    Example:
        >>> import torch
        >>> model = cnn(num_classes=10, in_channels=1, image_size=(8, 8))
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    _check(widths)
    if not widths:
        raise UserError("widths must name at least one block, got none")
    layers: list[nn.Module] = []
    channels, side = in_channels, min(image_size)
    for width in widths:
        layers += [
            conv(channels, width, 3, padding=1, bias=norm is None),
            *([norm(width)] if norm else []),
            activation(),
        ]
        if side >= 4:
            layers, side = [*layers, nn.MaxPool2d(2)], side // 2
        channels = width
    model = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(channels, num_classes)
    )
    he_normal_(model)
    return model


def _check(widths: Sequence[int]) -> None:
    if any(width < 1 for width in widths):
        raise UserError(f"widths must be at least 1, got {tuple(widths)}")
