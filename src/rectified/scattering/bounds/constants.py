"""Lipschitz constants of whole networks: |||Phi(f) - Phi(h)||| <= c ||f - h||.

By recursion from the last layer to the first, with the Littlewood-Paley sums of every bin:

    c_N = max_k |chi_N(k)|^2
    c_{n-1} = max_k ( |chi_{n-1}(k)|^2 + c_n L_n^2 R_n^2 sum_l |g_l(k)|^2 ),     c = sqrt(c_0)

Proof. Let b_n be the energy of the difference of all maps of depth n, and a_n that of their
features. Bessel's inequality, weighted, gives a_n + c_{n+1} b_{n+1} <= c_n b_n; telescope. An
admissible network, max{B_n, B_n L_n^2 R_n^2} <= 1, has c <= 1, where the published product formula
`product_constant` says between 2 and 4 for two layers.
"""

from __future__ import annotations

import math

import torch

from rectified.scattering.filter_banks import FilterBank
from rectified.scattering.network import ScatteringNetwork

_ROUNDING = 1e-12  # what float64 may add to a sum of squares that is 1


def admissibility(network: ScatteringNetwork) -> list[float]:
    """max{B_n, B_n L_n^2 R_n^2} of every layer; admissible means at most 1.

    References:
        Wiatowski and Bölcskei, 2018, arXiv 1512.06293, equation (17).

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, wavelets
        >>> [round(one, 9) for one in admissibility(ScatteringNetwork([Layer(wavelets())], (8, 8)))]
        [1.0]
    """
    return [
        bank.upper * max(1.0, layer.constant(bank.grid) ** 2)
        for layer, bank in zip(network.layers, network.banks, strict=False)
    ]


def is_admissible(network: ScatteringNetwork) -> bool:
    """Whether no layer can expand, to rounding; the last output filter counts too.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, maximum, modulus, wavelets
        >>> layer = Layer(wavelets(), modulus, maximum(2, window=3), normalise=False)
        >>> is_admissible(ScatteringNetwork([layer], (8, 8)))
        False
    """
    return max([*admissibility(network), network.banks[-1].upper]) <= 1 + _ROUNDING


def is_exact(network: ScatteringNetwork) -> bool:
    """Whether every constant is known, and none estimated from below.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, wavelets
        >>> is_exact(ScatteringNetwork([Layer(wavelets())], (8, 8)))
        True
    """
    return all(layer.nonlinearity.is_exact and layer.pooling.is_exact for layer in network.layers)


def depth_constants(network: ScatteringNetwork) -> list[float]:
    """c_0 ... c_N of the recursion: what the rest of the network does to energy at each depth.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, sigmoid, wavelets
        >>> network = ScatteringNetwork([Layer(wavelets(), sigmoid)] * 2, (16, 16))
        >>> [round(one, 9) for one in depth_constants(network)]
        [1.0, 1.0, 1.0]
    """
    found = [float((network.banks[-1].output.abs() ** 2).max())]
    for layer, bank in zip(network.layers[::-1], network.banks[-2::-1], strict=True):
        weight = found[0] * layer.constant(bank.grid) ** 2
        found.insert(0, float(bank.littlewood_paley(weight).max()))
    return found


def network_constant(network: ScatteringNetwork) -> float:
    """sqrt(c_0), the constant of the whole network; it needs no admissibility.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, wavelets
        >>> round(network_constant(ScatteringNetwork([Layer(wavelets())] * 2, (16, 16))), 9)
        1.0
    """
    return math.sqrt(depth_constants(network)[0])


def product_constant(network: ScatteringNetwork) -> float:
    """The published global constant, sqrt(sum_n ||chi_n||_1^2 prod_{k<=n} B_k L_k^2 R_k^2).

    References:
        Wiatowski et al., 2016, arXiv 1605.08283.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, wavelets
        >>> network = ScatteringNetwork([Layer(wavelets())] * 2, (16, 16))
        >>> product_constant(network) > network_constant(network)
        True
    """
    total, product = 0.0, 1.0
    for depth, bank in enumerate(network.banks):
        total += _taps(bank).abs().sum().item() ** 2 * product
        if depth < network.depth:
            product *= bank.upper * network.layers[depth].constant(bank.grid) ** 2
    return math.sqrt(total)


def gain(network: ScatteringNetwork, depth: int) -> float:
    """An upper bound on ||U f|| / ||f|| for all maps of one depth together.

    Args:
        depth: 0 to the number of layers.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, sigmoid, wavelets
        >>> round(gain(ScatteringNetwork([Layer(wavelets(), sigmoid)], (8, 8)), 1), 9)
        0.25
    """
    pairs = zip(network.layers[:depth], network.banks, strict=False)
    factors = (math.sqrt(bank.gain) * layer.constant(bank.grid) for layer, bank in pairs)
    return math.prod(factors, start=1.0)


def _taps(bank: FilterBank) -> torch.Tensor:
    return torch.fft.ifftn(bank.output)
