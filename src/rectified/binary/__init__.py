"""Binary networks: train with 1-bit weights and activations, run on bits.

    model = convert(resnet, estimator=ReSTE)           # or BinaryConv2d, BinaryLinear in your own
    fit(model, ..., hooks=[anneal])                    # moves the estimators over training
    packed = rectified.inference.pack(model)           # the same outputs from xor and popcount

Conventions: the sign of 0 is +1; what lies outside an image is exactly 0; a layer's scale comes
after the integer product.
"""

from typing import TYPE_CHECKING

from rectified.binary import estimators, indicators, layers
from rectified.binary.convert import convert, outer_layers
from rectified.binary.estimators import *  # noqa: F403 - the whole family
from rectified.binary.indicators import Indicators
from rectified.binary.layers import BinaryConv2d, BinaryLinear, anneal, set_progress
from rectified.binary.sign import Estimator, binarize
from rectified.errors import moved

__all__ = [
    "BinaryConv2d",
    "BinaryLinear",
    "Estimator",
    "Indicators",
    "anneal",
    "binarize",
    "convert",
    "estimators",
    "indicators",
    "layers",
    "outer_layers",
    "set_progress",
]
__all__ += estimators.__all__

if not TYPE_CHECKING:  # to which every name would seem to be there
    __getattr__ = moved(
        __name__,
        {
            "indicators": "estimating_error gradient_dispersion paper_estimating_error "
            "paper_gradient_instability",
            "layers": "binary_layers",
        },
        load_packed="rectified.inference.load",
        pack="rectified.inference.pack",
        save_packed="rectified.inference.save",
    )
