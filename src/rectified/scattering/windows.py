"""Smooth windows in frequency whose squares sum to one, on any grid.

Everything is built from Meyer's polynomial nu(x) = x^4 (35 - 84x + 70x^2 - 20x^3), which rises from
0 to 1 on [0, 1] with nu(x) + nu(1 - x) = 1. So cos^2(pi/2 nu(x)) + cos^2(pi/2 nu(1 - x)) = 1, and
neighbouring windows that meet in such a slope share the energy between them exactly:

- `low_pass`, `bands`: rings between radii 2^-j, from the highest frequencies down;
- `bumps`: equal windows around a circle, for angles, slopes or frequencies.

Frequencies run over a grid's DFT bins, with the Nyquist frequency at 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise, product

import torch
from jaxtyping import Float
from torch import Tensor

Grid = tuple[int, ...]
"""Sizes of a periodic grid, one per axis."""


def meyer(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Meyer's polynomial, 0 below 0 and 1 above 1.

    Example:
        >>> meyer(torch.tensor([-1.0, 0.5, 2.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    x = x.clamp(0, 1)
    return x**4 * (35 - 84 * x + 70 * x**2 - 20 * x**3)


def low_pass(radius: Float[Tensor, "*grid"], cutoff: float) -> Float[Tensor, "*grid"]:
    """1 up to half the cutoff, 0 from the cutoff on."""
    return torch.cos(math.pi / 2 * meyer(2 * radius / cutoff - 1))


def bands(
    radius: Float[Tensor, "*grid"], J: int
) -> tuple[Float[Tensor, "*grid"], list[Float[Tensor, "*grid"]]]:
    """A low-pass of cutoff 2^-J, and J rings above it from the finest to the coarsest.

    The squares sum to one. The finest ring reaches into the corners of the grid.
    """
    lows = [torch.ones_like(radius)] + [low_pass(radius, 2.0**-j) for j in range(1, J + 1)]
    rings = [(upper**2 - lower**2).clamp_min(0).sqrt() for upper, lower in pairwise(lows)]
    return lows[-1], rings


def bumps(position: Float[Tensor, "*grid"], period: float, count: int) -> list[Tensor]:
    """`count` equal windows around a circle of length `period`; their squares sum to one."""
    if count == 1:
        return [torch.ones_like(position)]
    spacing = period / count
    distances = ((position - k * spacing + period / 2) % period - period / 2 for k in range(count))
    return [torch.cos(math.pi / 2 * meyer(distance.abs() / spacing)) for distance in distances]


def frequencies(grid: Grid) -> list[Float[Tensor, "*grid"]]:
    """The frequency of every DFT bin along each axis, in [-1, 1), with Nyquist at -1."""
    axes = [2 * torch.fft.fftfreq(size, dtype=torch.float64) for size in grid]
    return list(torch.meshgrid(*axes, indexing="ij"))


def signed_frequencies(grid: Grid) -> Iterator[list[Float[Tensor, "*grid"]]]:
    """`frequencies` with every choice of sign for the Nyquist bins, which mean both at once."""
    for signs in product((-1.0, 1.0), repeat=len(grid)):
        yield [
            torch.where(axis == -1, sign, axis)
            for axis, sign in zip(frequencies(grid), signs, strict=True)
        ]


def mirrored(response: Tensor, dimensions: int) -> Tensor:
    """A response at the opposite frequencies, k -> -k, over the last `dimensions` axes.

    Example:
        >>> mirrored(torch.arange(5), 1).tolist()
        [0, 4, 3, 2, 1]
    """
    axes = tuple(range(-dimensions, 0))
    return response.flip(axes).roll((1,) * dimensions, axes)
