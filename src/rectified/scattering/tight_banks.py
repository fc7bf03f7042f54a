"""Tight frames by construction: wavelets, curvelets, shearlets, ridgelets, Weyl-Heisenberg.

`directional(alpha, tiling)` is one construction for four of them. Frequency is cut into J rings
between radii 2^-j, and each ring into wedges; `alpha` says how wedges multiply towards fine scales:

    alpha = 1    as many in every ring               wavelets
    alpha = 1/2  twice as many every second ring     curvelets (polar), shearlets (shear)
    alpha = 0    twice as many every ring            ridgelets

`polar` measures radius and angle, `shear` the larger coordinate and the slope, glued over four
cones. Weyl-Heisenberg (Gabor) frames cut the torus of frequencies into equal tiles instead. The
squares of all responses sum to one in every bin of every grid, so A = B = 1 to rounding.

`symmetry` says what the filters are in space:

    full   complex, one per wedge: tight for every signal
    half   complex, one of two opposite wedges, times sqrt(2): tight for real signals, half the work
    real   both opposite wedges in one: real and even filters, tight for every signal

In one dimension a ring has two wedges, its negative and its positive part.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError, choose
from rectified.scattering.filter_banks import Atom, FilterBank, Frame, check_grid
from rectified.scattering.windows import (
    Grid,
    bands,
    bumps,
    frequencies,
    mirrored,
    signed_frequencies,
)

Symmetry = Literal["full", "half", "real"]
Tiling = Literal["polar", "shear"]


def wavelets(J: int = 2, L: int = 8, *, symmetry: Symmetry = "full") -> Frame:
    """Directional Meyer wavelets.

    Args:
        J: scales, octaves; at least 1.
        L: orientations in half a turn, at least 1; without meaning in one dimension.
        symmetry: full, half or real; see above.

    Returns:
        What gives the filter bank of a grid of one or two dimensions.

    Raises:
        UserError: if an argument breaks its rule; when called, if the grid is below 2^J points.

    Example:
        >>> bank = wavelets(J=3, L=4, symmetry="half")((32, 33))
        >>> len(bank.filters), abs(bank.upper - 1) < 1e-12, abs(bank.lower - 1) < 1e-12
        (12, True, True)
    """
    return directional(1.0, "polar", J, L, symmetry=symmetry)


def curvelets(J: int = 2, L: int = 4, *, symmetry: Symmetry = "full") -> Frame:
    """Curvelets of the second generation's tiling; arguments as in `wavelets`.

    Args:
        J: scales.
        L: orientations in half a turn of the coarsest ring.
        symmetry: full, half or real.

    References:
        Candès and Donoho, New tight frames of curvelets, 2004.

    Example:
        >>> len(curvelets(J=3, L=4)((32, 32)).filters)  # 16 + 16 + 8
        40
    """
    return directional(0.5, "polar", J, L, symmetry=symmetry)


def shearlets(J: int = 2, L: int = 4, *, symmetry: Symmetry = "full") -> Frame:
    """Cone-adapted shearlets: uniform in slope; arguments as in `wavelets`.

    Args:
        J: scales.
        L: orientations in half a turn of the coarsest ring.
        symmetry: full, half or real.

    References:
        Guo, Kutyniok and Labate, Sparse multidimensional representations using anisotropic
        dilation and shear operators, 2006.

    Example:
        >>> round(shearlets(J=2)((24, 36)).upper, 12)
        1.0
    """
    return directional(0.5, "shear", J, L, symmetry=symmetry)


def ridgelets(J: int = 2, L: int = 4, *, symmetry: Symmetry = "full") -> Frame:
    """Ridgelets: wedges double with every scale; arguments as in `wavelets`.

    Args:
        J: scales.
        L: orientations in half a turn of the coarsest ring.
        symmetry: full, half or real.

    References:
        Candès, Ridgelets: theory and applications, 1998; Grohs, Ridgelet-type frame
        decompositions for Sobolev spaces related to linear transport, 2012.

    Example:
        >>> len(ridgelets(J=3, L=2)((32, 32)).filters)  # 16 + 8 + 4
        28
    """
    return directional(0.0, "polar", J, L, symmetry=symmetry)


def lowpass(J: int = 1) -> Frame:
    """The output filter of `wavelets(J)` alone, for the last layer.

    Args:
        J: octaves below the Nyquist frequency at which it ends, at least 0.

    Raises:
        UserError: if J is negative; when called, if the grid is below 2^J points.

    Example:
        >>> bank = lowpass(1)((8,))
        >>> len(bank.filters), bank.output.shape
        (0, torch.Size([8]))
    """
    if J < 0:
        raise UserError(f"J must be at least 0, got {J}")
    return partial(_lowpass_on, J=J)


def directional(
    alpha: float, tiling: Tiling, J: int, L: int, *, symmetry: Symmetry = "full"
) -> Frame:
    """The construction behind wavelets, curvelets, shearlets and ridgelets.

    Args:
        alpha: in [0, 1]: a ring has 2L * 2^ceil((J - 1 - j)(1 - alpha)) wedges.
        tiling: polar or shear.
        J: scales, at least 1.
        L: orientations in half a turn of the coarsest ring, at least 1.
        symmetry: full, half or real.

    Raises:
        UserError: if an argument breaks its rule.

    Example:
        >>> len(directional(0.5, "shear", J=2, L=4)((16, 16)).filters)
        24
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must be in [0, 1], got {alpha}")
    choose("tiling", tiling, get_args(Tiling))
    choose("symmetry", symmetry, get_args(Symmetry))
    for name, value in (("J", J), ("L", L)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    return partial(_directional_on, alpha=alpha, tiling=tiling, J=J, L=L, symmetry=symmetry)


def weyl_heisenberg(K: int = 8, *, symmetry: Symmetry = "full") -> Frame:
    """A Weyl-Heisenberg (Gabor) frame: K^d equal tiles of the torus of frequencies.

    The output filter is the tile around zero.

    Args:
        K: tiles along each axis, even and at least 2.
        symmetry: full, half or real.

    Returns:
        What gives the filter bank of a grid of any number of dimensions.

    Raises:
        UserError: if K breaks its rule; when called, if the grid has fewer than K points.

    References:
        Gröchenig, Foundations of Time-Frequency Analysis, 2001.

    Example:
        >>> len(weyl_heisenberg(4)((16, 16)).filters)
        15
    """
    choose("symmetry", symmetry, get_args(Symmetry))
    if K < 2 or K % 2:
        raise UserError(f"K must be even and at least 2, got {K}")
    return partial(_weyl_heisenberg_on, K=K, symmetry=symmetry)


def _lowpass_on(grid: Grid, *, J: int) -> FilterBank:
    check_grid(grid, 2**J, f"J = {J}")
    output, _ = bands(_radius(frequencies(grid), "polar"), J)
    return FilterBank(output, output.new_zeros(0, 1, *grid))


def _directional_on(
    grid: Grid, *, alpha: float, tiling: Tiling, J: int, L: int, symmetry: Symmetry
) -> FilterBank:
    if len(grid) not in (1, 2):
        raise UserError(f"directional frames have 1 or 2 dimensions, got {len(grid)}")
    check_grid(grid, 2**J, f"J = {J}")
    output, rings = bands(_radius(frequencies(grid), tiling), J)
    squares, atoms = [], []
    for j, ring in enumerate(rings):
        count = 2 if len(grid) == 1 else 2 * L * 2 ** math.ceil((J - 1 - j) * (1 - alpha) - 1e-9)
        filters = _joined(ring**2 * _wedges(grid, tiling, count), symmetry, len(grid))
        turn = 2 * math.pi / count
        squares.append(filters)
        atoms += [
            Atom(float(j), None if symmetry == "real" and len(grid) == 1 else k * turn)
            for k in range(len(filters))
        ]
    return FilterBank(
        output, torch.cat(squares).sqrt().unsqueeze(1), symmetry == "half", tuple(atoms)
    )


def _radius(frequency: list[Tensor], tiling: Tiling) -> Float[Tensor, "*grid"]:
    stacked = torch.stack(frequency).abs()
    return stacked.amax(0) if tiling == "shear" else stacked.square().sum(0).sqrt()


def _wedges(grid: Grid, tiling: Tiling, count: int) -> Float[Tensor, "wedges *grid"]:
    """Squares of the windows around the circle of directions; they sum to one.

    A Nyquist bin means both signs of its frequency, so it gets the mean of what they would get.
    Wedge k + count/2 is then wedge k at the opposite frequency, on every bin of every grid.
    """
    choices = [_windows(frequency, tiling, count) for frequency in signed_frequencies(grid)]
    return torch.stack([torch.stack(windows) ** 2 for windows in choices]).mean(0)


def _windows(frequency: list[Tensor], tiling: Tiling, count: int) -> list[Tensor]:
    if len(frequency) == 1:
        return [(frequency[0] > 0).double(), (frequency[0] < 0).double()]
    first, second = frequency
    if tiling == "polar":
        return bumps(torch.atan2(second, first), 2 * math.pi, count)
    return bumps(_slope(first, second), 8.0, count)


def _slope(first: Tensor, second: Tensor) -> Tensor:
    """A position on a circle of length 8: the slope within each of four cones, two long."""
    is_flat = second.abs() <= first.abs()
    flat = torch.where(first != 0, second / first, 0.0)
    steep = torch.where(second != 0, first / second, 0.0)
    return torch.where(
        is_flat,
        torch.where(first >= 0, flat, 4 + flat),
        torch.where(second >= 0, 2 - steep, 6 - steep),
    )


def _joined(
    squares: Float[Tensor, "wedges *grid"], symmetry: Symmetry, dimensions: int
) -> Float[Tensor, "filters *grid"]:
    """Squares of the filters; the second half of the wedges is opposite to the first."""
    if symmetry == "full":
        return squares
    first = squares[: len(squares) // 2]
    return 2 * first if symmetry == "half" else first + mirrored(first, dimensions)


def _weyl_heisenberg_on(grid: Grid, *, K: int, symmetry: Symmetry) -> FilterBank:
    check_grid(grid, K, f"K = {K}")
    # a tile's place on the circle, in turns; a bin's frequency is in half turns
    axes = [bumps(torch.fft.fftfreq(n, dtype=torch.float64), 1.0, K) for n in grid]
    tiles = list(product(range(K), repeat=len(grid)))
    filters, atoms = [], []
    for tile in tiles[1:]:
        opposite = tuple(-k % K for k in tile)
        if symmetry != "full" and opposite < tile:
            continue
        square = _tile(axes, tile)
        if symmetry == "real" and opposite != tile:
            square = square + _tile(axes, opposite)
        if symmetry == "half" and opposite != tile:
            square = 2 * square
        filters.append(square.sqrt())
        atoms.append(_tile_atom(tile, K))
    output = _tile(axes, tiles[0]).sqrt()
    return FilterBank(output, torch.stack(filters).unsqueeze(1), symmetry == "half", tuple(atoms))


def _tile(axes: list[list[Tensor]], tile: tuple[int, ...]) -> Float[Tensor, "*grid"]:
    """The square of the tensor product of one window per axis."""
    windows = [axis[k] ** 2 for axis, k in zip(axes, tile, strict=True)]
    grids = torch.meshgrid(*windows, indexing="ij")
    return torch.stack(grids).prod(0)


def _tile_atom(tile: tuple[int, ...], K: int) -> Atom:
    centre = [2 * ((k + K // 2) % K - K // 2) / K for k in tile]  # Nyquist at 1
    return Atom(-math.log2(math.hypot(*centre)), math.atan2(centre[-1], centre[0]))
