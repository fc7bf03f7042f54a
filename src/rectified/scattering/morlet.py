"""Morlet wavelets as kymatio has them, in closed form in frequency.

    g(w) = exp(-(w - xi)^T C^-1 (w - xi) / 4) - K exp(-w^T C^-1 w / 4),   xi = 3 pi / 4 / 2^j,
    C = R diag(1, s^2) R^T / (2 sigma^2),   sigma = 0.8 * 2^j,   s = 4 / L,   K such that g(0) = 0

summed over the aliases w + 2 pi m of a grid; R turns by the filter's angle. The output filter is a
Gaussian of sigma = 0.8 * 2^(J-1). Kymatio samples the same functions in space and periodises them
there; by Poisson's summation that is this sum, at a thousandth of the exponentials. It writes pi as
3.1415 in their norm, and so has every response 2.9e-5 larger; that factor is kept.

The bank is neither tight nor, for J >= 3, admissible (B is up to 1.07); it serves real signals.

References:
    Andreux et al., Kymatio: Scattering Transforms in Python, 2020, arXiv 1812.11214; Bruna and
    Mallat, Invariant scattering convolution networks, 2013, arXiv 1203.1513.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.scattering.filter_banks import Atom, FilterBank, Frame, check_grid
from rectified.scattering.windows import Grid

_ALIASES = 2  # on each side; the Gaussians of sigma >= 0.8 have died long before
_NORM = math.pi / 3.1415  # kymatio's
_SIGMA, _CENTRE = 0.8, 3 * math.pi / 4  # of the finest scale


def morlet(J: int = 2, L: int = 8) -> Frame:
    """A frame of two-dimensional Morlet wavelets, for real signals.

    Args:
        J: scales, octaves; at least 1.
        L: orientations in half a turn, at least 1.

    Returns:
        What gives the filter bank of a grid, filters by scale, then orientation.

    Raises:
        UserError: if an argument breaks its rule; when called, if the grid is not two-dimensional
            or below 2^J points.

    Example:
        >>> bank = morlet(J=2, L=8)((40, 40))
        >>> len(bank.filters), bank.half, bank.upper < 1.001
        (16, True, True)
    """
    for name, value in (("J", J), ("L", L)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    return partial(_morlet_on, J=J, L=L)


def _morlet_on(grid: Grid, *, J: int, L: int) -> FilterBank:
    if len(grid) != 2:
        raise UserError(f"Morlet frames have 2 dimensions, got {len(grid)}")
    check_grid(grid, 2**J, f"J = {J}")
    filters, atoms = [], []
    for j, orientation in product(range(J), range(L)):
        angle = (L - L // 2 - 1 - orientation) * math.pi / L
        filters.append(_wavelet(grid, j, angle, 4 / L))
        atoms.append(Atom(j - math.log2(_CENTRE / math.pi), angle))
    output = _gaussian(grid, _SIGMA * 2 ** (J - 1), 0.0, 1.0, 0.0)
    return FilterBank(output, torch.stack(filters).unsqueeze(1), True, tuple(atoms))


def _wavelet(grid: Grid, j: int, angle: float, slant: float) -> Float[Tensor, "*grid"]:
    sigma, centre = _SIGMA * 2**j, _CENTRE / 2**j
    wave = _gaussian(grid, sigma, angle, slant, centre)
    envelope = _gaussian(grid, sigma, angle, slant, 0.0)
    return wave - wave[0, 0] / envelope[0, 0] * envelope


def _gaussian(
    grid: Grid, sigma: float, angle: float, slant: float, centre: float
) -> Float[Tensor, "*grid"]:
    """A turned Gaussian around `centre`, summed over aliases."""
    first, second = (_unfolded(size) for size in grid)
    cosine, sine = math.cos(angle), math.sin(angle)
    along = first[:, None] * cosine + second * sine - centre
    across = second * cosine - first[:, None] * sine
    unfolded = torch.exp(-(sigma**2) / 2 * (along**2 + across**2 / slant**2))
    copies = 2 * _ALIASES + 1
    return _NORM * unfolded.reshape(copies, grid[0], copies, grid[1]).sum((0, 2))


def _unfolded(size: int) -> Float[Tensor, " copies_size"]:
    """Frequencies of all aliases in radians, each a run of `size` bins."""
    copies = torch.arange(-_ALIASES, _ALIASES + 1, dtype=torch.float64)
    bins = torch.fft.fftfreq(size, dtype=torch.float64)
    return 2 * math.pi * (copies[:, None] + bins).flatten()
