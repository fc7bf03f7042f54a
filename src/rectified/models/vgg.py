"""VGG networks for small images: 3x3 convolutions with normalisation, and one linear classifier.

Layers of `features` are numbered as in torchvision's `vgg16_bn` (or `vgg16` without norm), so that
its weights fit. Five pools make 32x32 one place; a smaller image is pooled until it is one place
(8x8 three times), and the pools that are left over are identities under the same numbers.

References:
    K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    2014, arXiv:1409.1556, table 1 (D and E).
"""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.models.initial import he_normal_

Layer = Callable[..., nn.Module]

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions of vgg16
_DEPTHS = {16: 0, 19: 1}  # convolutions that each of the last three stages has more


def vgg(
    depth: int,
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    activation: Callable[[], nn.Module] = nn.ReLU,
    conv: Layer = nn.Conv2d,
    linear: Layer = nn.Linear,
    norm: Layer | None = nn.BatchNorm2d,
) -> "VGG":
    """Build a VGG network for small images; `vgg16` and `vgg19` are given depths.

    Args:
        depth: 16 or 19.
        num_classes: number of logits.
        in_channels: channels of an image.
        image_size: height and width of an image.
        activation: makes the module after each convolution.
        conv: makes a convolution as `nn.Conv2d` does.
        linear: makes the classifier as `nn.Linear` does.
        norm: makes a normalisation from a number of channels; None for none.

    Returns:
        Logits of images.

    Raises:
        UserError: if `depth` is neither 16 nor 19.

    Example:
        >>> model = vgg16(num_classes=10, in_channels=3, image_size=(32, 32))
        >>> len(model.features), model.classifier
        (44, Linear(in_features=512, out_features=10, bias=True))
    """
    if depth not in _DEPTHS:
        raise UserError(f"depth must be 16 or 19, got {depth}")
    layers: list[nn.Module] = []
    channels, side = in_channels, min(image_size)
    for stage, (width, convolutions) in enumerate(_STAGES):
        for _ in range(convolutions + (_DEPTHS[depth] if stage >= 2 else 0)):
            layers.append(conv(channels, width, 3, padding=1))
            layers += [*([norm(width)] if norm else []), activation()]
            channels = width
        layers.append(nn.MaxPool2d(2) if side >= 2 else nn.Identity())
        side = max(side // 2, 1)
    model = VGG(nn.Sequential(*layers), linear(channels, num_classes))
    he_normal_(model)
    return model


vgg16 = partial(vgg, 16)
vgg19 = partial(vgg, 19)


class VGG(nn.Module):
    """Features, their mean over places, a classifier; made by `vgg`."""

    def __init__(self, features: nn.Sequential, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
