"""Binary networks: train with 1-bit weights and activations, run on bits.

    model = convert(resnet, estimator=ReSTE)           # or BinaryConv2d, BinaryLinear in your own
    fit(model, ..., hooks=[anneal])                    # moves the estimators over training
    packed = rectified.inference.pack(model)           # the same outputs from xor and popcount

Conventions: the sign of 0 is +1; what lies outside an image is exactly 0; a layer's scale comes
after the integer product.
"""

from rectified.binary.convert import convert, outer_layers
from rectified.binary.estimators import (
    DSQ,
    EDE,
    FDA,
    RBNN,
    STE,
    ApproxSign,
    ClippedSTE,
    GainSTE,
    ReSTE,
    Surrogate,
    SwishSign,
)
from rectified.binary.indicators import (
    Indicators,
    estimating_error,
    gradient_dispersion,
    paper_estimating_error,
    paper_gradient_instability,
)
from rectified.binary.layers import (
    BinaryConv2d,
    BinaryLinear,
    anneal,
    binary_layers,
    set_progress,
)
from rectified.binary.sign import Estimator, binarize
from rectified.errors import moved

__all__ = [
    "DSQ",
    "EDE",
    "FDA",
    "RBNN",
    "STE",
    "ApproxSign",
    "BinaryConv2d",
    "BinaryLinear",
    "ClippedSTE",
    "Estimator",
    "GainSTE",
    "Indicators",
    "ReSTE",
    "Surrogate",
    "SwishSign",
    "anneal",
    "binarize",
    "binary_layers",
    "convert",
    "estimating_error",
    "gradient_dispersion",
    "outer_layers",
    "paper_estimating_error",
    "paper_gradient_instability",
    "set_progress",
]

__getattr__ = moved(
    __name__,
    load_packed="rectified.inference.load",
    pack="rectified.inference.pack",
    save_packed="rectified.inference.save",
)
