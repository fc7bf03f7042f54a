"""Networks: classifiers for small images, and velocity fields for flows.

    with seeded(seed):  # of rectified.seeds
        model = resnet20(num_classes=10, in_channels=3, image_size=(32, 32))

Every factory takes `num_classes`, `in_channels` and `image_size` (height, width), and its layers as
arguments: `activation=nn.ReLU`, `conv=nn.Conv2d`, `linear=nn.Linear`, `norm=nn.BatchNorm2d`. So a
network of other layers is the same function: `resnet20(..., conv=BinaryConv2d)`. Models take images
that are standardised already and return logits.

Velocity fields (`VelocityMLP`, `VelocityResMLP`, `UNet`, `DiT`) are called as `model(x, t)` or
`model(x, t, labels)`, with t in [0, 1] and label -1 for "no class".

Initial weights come from PyTorch's global generator, as is the convention of `nn.Module`: whoever
wants given weights makes the network inside `rectified.seeds.seeded`.
"""

from rectified.models.classifiers import cnn, mlp
from rectified.models.dit import DiT
from rectified.models.ensemble import Ensemble
from rectified.models.one_bit import one_bit_resnet20, vgg_small
from rectified.models.resnet import resnet20, resnet32, resnet56
from rectified.models.unet import UNet
from rectified.models.velocity import VelocityMLP, VelocityResMLP
from rectified.models.vgg import vgg16, vgg19
from rectified.models.vit import vit

__all__ = [
    "DiT",
    "Ensemble",
    "UNet",
    "VelocityMLP",
    "VelocityResMLP",
    "cnn",
    "mlp",
    "one_bit_resnet20",
    "resnet20",
    "resnet32",
    "resnet56",
    "vgg16",
    "vgg19",
    "vgg_small",
    "vit",
]
