"""Vertical translation invariance: features of greater depth move less.

For a translation t that the pooling factors up to depth n divide, s = t / (S_1 ... S_n),

    Phi^n(T_t f) = T_s Phi^n(f)                                                  exactly, and
    ||Phi^n(T_t f) - Phi^n(f)|| <= max_k |e^{-2 pi i <k, s>/N_n} - 1| |chi_n(k)| gain_n ||f||
                                <= 2 pi |t| K_n / (S_1 ... S_n) gain_n ||f||

with K_n = max_k |k/N_n| |chi_n(k)| and gain_n <= 1 in an admissible network. The second line falls
as the product of the factors grows, which is Theorem 1 of the theory. For other t the first line
holds only up to aliasing, and nothing is claimed.

References:
    Wiatowski and Bölcskei, 2018, arXiv 1512.06293, Theorem 1, equations (19) and (21).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.scattering.bounds.constants import gain
from rectified.scattering.network import ScatteringNetwork


def reduction(network: ScatteringNetwork, depth: int) -> int:
    """S_1 ... S_n, by which the grid of depth n is coarser than the input's.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, wavelets
        >>> reduction(ScatteringNetwork([Layer(wavelets())] * 2, (16, 16)), 2)
        4
    """
    return math.prod(layer.pooling.factor for layer in network.layers[:depth])


def translation_bound(network: ScatteringNetwork, shift: Sequence[int], depth: int) -> float:
    """The sharper bound on ||Phi^n(T_t f) - Phi^n(f)|| / ||f||, bin by bin.

    Args:
        network: any.
        shift: t, one whole number of points per axis, divisible by S_1 ... S_n.
        depth: n.

    Raises:
        UserError: if the shift is not divisible.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, wavelets
        >>> network = ScatteringNetwork([Layer(wavelets())] * 2, (32, 32))
        >>> [round(translation_bound(network, (4, 0), n), 2) for n in range(3)]
        [1.41, 0.77, 0.77]
    """
    factor = _checked(network, shift, depth)
    response = network.banks[depth].output
    phase = sum(axis * step / factor for axis, step in zip(_turns(response), shift, strict=True))
    assert isinstance(phase, Tensor)
    moved = 2 * torch.sin(math.pi * phase).abs() * response.abs()  # |e^{-2 pi i a} - 1|
    return float(moved.max()) * gain(network, depth)


def decay_bound(network: ScatteringNetwork, shift: Sequence[int], depth: int) -> float:
    """The bound as published, 2 pi |t| K_n / (S_1 ... S_n), times the gain.

    Args:
        network: any.
        shift: t, in points.
        depth: n.

    Raises:
        UserError: if the shift is not divisible.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, wavelets
        >>> network = ScatteringNetwork([Layer(wavelets())] * 2, (32, 32))
        >>> bounds = [decay_bound(network, (4, 0), n) for n in range(3)]
        >>> bounds[1] < bounds[0]
        True
    """
    factor = _checked(network, shift, depth)
    response = network.banks[depth].output
    radius = torch.stack(_turns(response)).square().sum(0).sqrt()
    decay = float((radius * response.abs()).max())
    return 2 * math.pi * math.hypot(*shift) * decay / factor * gain(network, depth)


def _checked(network: ScatteringNetwork, shift: Sequence[int], depth: int) -> int:
    factor = reduction(network, depth)
    if len(shift) != len(network.grid) or any(step % factor for step in shift):
        raise UserError(
            f"shift must have {len(network.grid)} multiples of {factor} (the product of the "
            f"pooling factors up to depth {depth}), got {tuple(shift)}"
        )
    return factor


def _turns(response: Tensor) -> list[Float[Tensor, "*grid"]]:
    """The frequency k/N of every bin along each axis, in [-1/2, 1/2)."""
    axes = [torch.fft.fftfreq(size, dtype=torch.float64) for size in response.shape]
    return list(torch.meshgrid(*axes, indexing="ij"))
