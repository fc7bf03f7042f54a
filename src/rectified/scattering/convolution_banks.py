"""Filter banks from impulse responses: separable wavelets, random filters, learnt convolutions.

An impulse response of a few taps is put on the grid, centred, and its DFT is its response; that is
circular convolution with it, exactly. `random_filters` and `from_convolution` bring no output
filter of their own: they get a Meyer low-pass of cutoff 2^-J, and what room it leaves (`B = 1`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.scattering.filter_banks import Atom, FilterBank, Frame, check_grid, complemented
from rectified.scattering.tight_banks import lowpass
from rectified.scattering.windows import Grid


def separable(J: int = 2, taps: int | Sequence[float] = 2) -> Frame:
    """The undecimated separable wavelet transform: 2^d - 1 filters per scale, tight.

    Args:
        J: scales, at least 1.
        taps: length of Daubechies' filter, even, 2 (Haar) to 20; or the low-pass taps of any
            orthonormal wavelet, sum sqrt(2).

    Raises:
        UserError: if J or the length breaks its rule, or the taps are not orthonormal to their
            even shifts; when called, if the grid has fewer than 2^J points.

    References:
        Daubechies, Orthonormal bases of compactly supported wavelets, 1988; Nason and Silverman,
        The stationary wavelet transform, 1995.

    Example:
        >>> bank = separable(J=2, taps=4)((15, 16))
        >>> len(bank.filters), abs(bank.lower - 1) < 1e-9, abs(bank.upper - 1) < 1e-9
        (6, True, True)
    """
    if J < 1:
        raise UserError(f"J must be at least 1, got {J}")
    low = daubechies(taps) if isinstance(taps, int) else torch.tensor(taps, dtype=torch.float64)
    _check_orthonormal(low)
    return partial(_separable_on, J=J, low=low)


def daubechies(length: int) -> Float[Tensor, " length"]:
    """Daubechies' low-pass taps of minimal phase, sum sqrt(2).

    The polynomial sum_k C(p - 1 + k, k) y^k, y = (2 - z - 1/z)/4, is factored; the roots inside
    the circle go to the filter, beside p zeros at z = -1.

    Args:
        length: of the filter, 2p, even, 2 to 20.

    Raises:
        UserError: if the length breaks its rule.

    Example:
        >>> daubechies(4)
        tensor([ 0.4830,  0.8365,  0.2241, -0.1294], dtype=torch.float64)
    """
    if length % 2 or not 2 <= length <= 20:
        raise UserError(f"taps must be even and in 2..20, got {length}")
    p = length // 2
    in_y = [math.comb(p - 1 + k, k) for k in range(p)]
    roots = np.roots(in_y[::-1])
    # y = (2 - z - 1/z)/4 has two solutions z, 1/z: keep the one inside the circle
    inside = [min(np.roots([1, 4 * y - 2, 1]), key=abs) for y in roots]
    taps = np.poly([-1.0] * p + inside).real
    return torch.from_numpy(taps * (math.sqrt(2) / taps.sum()))


def random_filters(
    count: int = 16,
    size: int = 7,
    *,
    generator: torch.Generator,
    J: int = 1,
    is_complex: bool = False,
) -> Frame:
    """Filters of normal random taps, with their mean taken away.

    Args:
        count: filters, at least 1.
        size: taps along each axis, at least 2.
        generator: of the taps, which are drawn at once and the same on every grid.
        J: cutoff 2^-J of the output filter.
        is_complex: whether the taps are complex.

    Raises:
        UserError: if an argument breaks its rule; when called, if the grid is below `size` points.

    Example:
        >>> frame = random_filters(8, 5, generator=torch.Generator().manual_seed(0))
        >>> round(frame((16, 16)).upper, 12)
        1.0
    """
    if count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    if size < 2:
        raise UserError(f"size must be at least 2, got {size}")
    dtype = torch.complex128 if is_complex else torch.float64
    square = torch.randn(count, size, size, generator=generator, dtype=dtype)
    return partial(_random_on, square=square, output=lowpass(J))


def from_convolution(convolution: nn.Module, *, J: int = 1) -> Frame:
    """The filters of a convolution layer: `nn.Conv1d` or `nn.Conv2d`, of any number of channels.

    The bank is made from the weights as they are when it is asked for, and gradients reach them.
    The bias is left out, since a layer must keep 0 at 0; stride and padding are left out too.

    Args:
        convolution: the layer; groups and dilation must be 1.
        J: cutoff 2^-J of the output filter.

    Raises:
        UserError: if it is no such layer; when called, if the grid is too small for the kernel.

    Example:
        >>> conv = torch.nn.Conv2d(3, 12, 5, bias=False)
        >>> bank = from_convolution(conv)((16, 16))
        >>> bank.channels, len(bank.filters), round(bank.upper, 6)
        (3, 12, 1.0)
    """
    if not isinstance(convolution, nn.Conv1d | nn.Conv2d):
        raise UserError(f"convolution must be Conv1d or Conv2d, got {type(convolution).__name__}")
    if convolution.groups != 1 or set(convolution.dilation) != {1}:
        raise UserError(
            f"groups and dilation must be 1, got {convolution.groups} and {convolution.dilation}"
        )
    return partial(_convolution_on, convolution=convolution, output=lowpass(J))


def responses(
    taps: Num[Tensor, "filters channels *window"], grid: Grid
) -> Num[Tensor, "filters channels *grid"]:
    """DFTs of impulse responses, centred on the origin of a periodic grid.

    Raises:
        UserError: if a window is larger than the grid.

    Example:
        >>> responses(torch.ones(1, 1, 3), (4,)).real
        tensor([[[ 3.,  1., -1.,  1.]]])
    """
    window = tuple(taps.shape[2:])
    if len(window) != len(grid):
        raise UserError(f"filters have {len(window)} dimensions, the grid has {len(grid)}")
    if any(w > n for w, n in zip(window, grid, strict=True)):
        raise UserError(f"grid must be at least as large as the filters, {window}, got {grid}")
    margins = [n - w for w, n in zip(window, grid, strict=True)]
    padded = F.pad(taps, [part for margin in reversed(margins) for part in (0, margin)])
    axes = tuple(range(-len(grid), 0))
    return torch.fft.fftn(padded.roll([-(w // 2) for w in window], axes), dim=axes)


def _check_orthonormal(low: Float[Tensor, " taps"]) -> None:
    shifts = [float(low[2 * k :] @ low[: len(low) - 2 * k]) for k in range((len(low) + 1) // 2)]
    error = max(abs(value - (k == 0)) for k, value in enumerate(shifts))
    if error > 1e-8:
        raise UserError(
            f"taps must be orthonormal to their even shifts, got an error of {error:.2g}"
        )


def _separable_on(grid: Grid, *, J: int, low: Float[Tensor, " taps"]) -> FilterBank:
    check_grid(grid, 2**J, f"J = {J}")
    signs = (-1.0) ** torch.arange(len(low), dtype=torch.float64)
    pair = torch.stack([low, low.flip(0) * signs]) / math.sqrt(2)
    before = torch.ones(grid, dtype=torch.complex128)
    filters, atoms = [], []
    for j in range(J):
        axes = [_dilated(pair, n, 2**j) for n in grid]
        for choice in list(product((0, 1), repeat=len(grid)))[1:]:
            filters.append(before * _outer([a[c] for a, c in zip(axes, choice, strict=True)]))
            atoms.append(Atom(float(j)))
        before = before * _outer([axis[0] for axis in axes])
    return FilterBank(before, torch.stack(filters).unsqueeze(1), atoms=tuple(atoms))


def _dilated(taps: Float[Tensor, "pair taps"], size: int, step: int) -> Num[Tensor, "pair size"]:
    """Responses of filters with `step - 1` zeros between their taps: frequency times `step`."""
    bins = torch.arange(size, dtype=torch.float64) * step % size
    times = torch.arange(taps.shape[1], dtype=torch.float64)
    waves = torch.polar(
        torch.ones(size, len(times), dtype=torch.float64),
        -2 * math.pi / size * torch.outer(bins, times),
    )
    return taps.to(waves.dtype) @ waves.T


def _outer(factors: list[Tensor]) -> Num[Tensor, "*grid"]:
    return torch.stack(torch.meshgrid(*factors, indexing="ij")).prod(0)


def _random_on(grid: Grid, *, square: Tensor, output: Frame) -> FilterBank:
    if len(grid) not in (1, 2):
        raise UserError(f"random filters have 1 or 2 dimensions, got {len(grid)}")
    taps = square if len(grid) == 2 else square[:, 0]
    window = tuple(range(1, taps.ndim))
    taps = (taps - taps.mean(window, keepdim=True)).unsqueeze(1)
    return complemented(output(grid).output, responses(taps, grid))


def _convolution_on(grid: Grid, *, convolution: nn.Module, output: Frame) -> FilterBank:
    weight = convolution.weight
    assert isinstance(weight, Tensor)
    # a layer correlates; its taps are the impulse response in reverse
    taps = weight.double().flip(tuple(range(2, weight.ndim)))
    return complemented(output(grid).output.to(weight.device), responses(taps, grid))
