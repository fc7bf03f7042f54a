"""Scattering: features with proofs, from fixed or learnt filters, on PyTorch.

    network = ScatteringNetwork([Layer(wavelets(J=3), modulus, average(2)),
                                 Layer(weyl_heisenberg(8), tanh, average(2))], grid=(64, 64))
    features = network(images)                      # one tensor per depth
    bounds.network_constant(network)                # it cannot move further than its input

Any frame, any Lipschitz non-linearity, any Lipschitz pooling, another one in every layer; signals
of one or two dimensions; every statement exact on the periodic grid. `Scattering2D` gives kymatio's
coefficients, `ScatteringTransformer` features for scikit-learn.

Conventions: input `(*batch, channels, *grid)`; filters are responses in frequency, in float64, cast
to the input's precision; scales count octaves below the Nyquist frequency; norms are sums over the
grid.
"""

from typing import TYPE_CHECKING, Any

from rectified.scattering import bounds
from rectified.scattering.convolution_banks import (
    daubechies,
    from_convolution,
    random_filters,
    separable,
)
from rectified.scattering.filter_banks import Atom, FilterBank, Frame, complemented
from rectified.scattering.frechet import frechet_distance, frechet_features, gaussian_distance
from rectified.scattering.layers import Layer
from rectified.scattering.morlet import morlet
from rectified.scattering.network import ScatteringNetwork, features
from rectified.scattering.nonlinearities import (
    NONLINEARITIES,
    Nonlinearity,
    custom_nonlinearity,
    elu,
    gelu,
    identity,
    leaky_relu,
    log_modulus,
    mish,
    modulus,
    relu,
    sigmoid,
    silu,
    sine,
    soft_threshold,
    softplus,
    tanh,
)
from rectified.scattering.paths import Path, path_table, prune_paths
from rectified.scattering.pooling import (
    Pooling,
    average,
    custom_pooling,
    l2,
    linear,
    maximum,
    mean,
    no_pooling,
    power,
    subsample,
)
from rectified.scattering.scattering2d import Scattering2D
from rectified.scattering.tight_banks import (
    curvelets,
    directional,
    lowpass,
    ridgelets,
    shearlets,
    wavelets,
    weyl_heisenberg,
)

if TYPE_CHECKING:
    from rectified.scattering.transformer import ScatteringTransformer


def __getattr__(name: str) -> Any:
    """scikit-learn takes a second to import, so its transformer comes when asked for."""
    if name == "ScatteringTransformer":
        from rectified.scattering.transformer import ScatteringTransformer

        return ScatteringTransformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "NONLINEARITIES",
    "Atom",
    "FilterBank",
    "Frame",
    "Layer",
    "Nonlinearity",
    "Path",
    "Pooling",
    "Scattering2D",
    "ScatteringNetwork",
    "ScatteringTransformer",
    "average",
    "bounds",
    "complemented",
    "curvelets",
    "custom_nonlinearity",
    "custom_pooling",
    "daubechies",
    "directional",
    "elu",
    "features",
    "frechet_distance",
    "frechet_features",
    "from_convolution",
    "gaussian_distance",
    "gelu",
    "identity",
    "l2",
    "leaky_relu",
    "linear",
    "log_modulus",
    "lowpass",
    "maximum",
    "mean",
    "mish",
    "modulus",
    "morlet",
    "no_pooling",
    "path_table",
    "power",
    "prune_paths",
    "random_filters",
    "relu",
    "ridgelets",
    "separable",
    "shearlets",
    "sigmoid",
    "silu",
    "sine",
    "soft_threshold",
    "softplus",
    "subsample",
    "tanh",
    "wavelets",
    "weyl_heisenberg",
]
