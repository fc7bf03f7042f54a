"""One layer of a scattering network: filters, a non-linearity, a pooling.

    U[l] f = P( M( f * g_l ) )

A layer takes maps in one axis before the grid's, and gives a map for each of theirs (or each group
of `channels` of theirs) and each filter, parents first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64, Num
from torch import Tensor

from rectified.errors import UserError
from rectified.scattering.filter_banks import FilterBank, Frame
from rectified.scattering.nonlinearities import Nonlinearity, modulus
from rectified.scattering.pooling import Pooling, average
from rectified.scattering.tight_banks import lowpass
from rectified.scattering.windows import Grid

Pairs = tuple[Int64[Tensor, " paths"], Int64[Tensor, " paths"]]
"""Which paths are kept: the group that each comes from, and its filter."""


@dataclass(frozen=True)
class Layer:
    """Filters, non-linearity and pooling of one layer.

    Args:
        filters: a frame, such as `wavelets(J=2)`, or a bank for the one grid that it will meet.
        nonlinearity: M.
        pooling: P.
        normalise: whether the filters are scaled down until the layer is admissible,
            max{B, B L^2 R^2} <= 1, where they are not.

    Example:
        >>> from rectified.scattering import tanh, weyl_heisenberg
        >>> layer = Layer(weyl_heisenberg(4), tanh, average(2))
        >>> layer.bank((16, 16)).upper <= 1, layer.constant((16, 16))
        (True, 1.0)
    """

    filters: Frame
    nonlinearity: Nonlinearity = modulus
    pooling: Pooling = field(default_factory=lambda: average(2))
    normalise: bool = True

    def bank(self, grid: Grid) -> FilterBank:
        """The layer's filter bank on a grid."""
        bank = self.filters(grid)
        return bank.normalised(self.constant(grid)) if self.normalise else bank

    def constant(self, grid: Grid) -> float:
        """L R, the constant of non-linearity and pooling together."""
        return self.nonlinearity.lipschitz * self.pooling.lipschitz(grid)


def banks(layers: Sequence[Layer], grid: Grid, last: Frame | None = None) -> tuple[FilterBank, ...]:
    """The bank of every layer, and that of the last output filter.

    Args:
        layers: any number.
        grid: of the input.
        last: the frame whose output filter ends the network, `lowpass(1)` if not given.

    Raises:
        UserError: if a grid on the way is too small, or a pooling factor does not divide it.

    Example:
        >>> from rectified.scattering import wavelets
        >>> [bank.grid for bank in banks([Layer(wavelets(J=1))] * 2, (16, 8))]
        [(16, 8), (8, 4), (4, 2)]
    """
    found = []
    for layer in layers:
        found.append(layer.bank(grid))
        grid = layer.pooling.grid(grid)
    return (*found, (last or lowpass(1))(grid))


def output(
    spectrum: Tensor, bank: FilterBank, *, is_real: bool
) -> Num[Tensor, "*batch maps *grid"]:
    """f * chi of maps with these spectra."""
    filtered = _inverse(spectrum * bank.output, len(bank.grid))
    return filtered.real if is_real and bank.has_real_output else filtered


def advance(
    spectrum: Tensor, bank: FilterBank, layer: Layer, *, is_real: bool, pairs: Pairs | None = None
) -> Num[Tensor, "*batch paths *smaller"]:
    """U[l] f for maps with these spectra and all filters, or for chosen pairs.

    Raises:
        UserError: if a half bank meets complex maps, or the maps do not fill groups of channels.
    """
    dimensions = len(bank.grid)
    _check_maps(spectrum.shape[-dimensions - 1], bank, is_real)
    product = _products(spectrum, bank, pairs)
    if layer.pooling.is_subsampling:
        # picking values commutes with M; in frequency it is a sum over what aliases
        product = _folded(product, dimensions, layer.pooling.factor)
    maps = _inverse(product, dimensions)
    maps = layer.nonlinearity(maps.real if is_real and bank.has_real_filters else maps)
    return maps if layer.pooling.is_subsampling else layer.pooling(maps, dimensions)


def _check_maps(maps: int, bank: FilterBank, is_real: bool) -> None:
    if bank.half and not is_real:
        raise UserError(
            "a half bank is for real maps, got complex ones: take symmetry='full', or a modulus "
            "before it"
        )
    if maps % bank.channels:
        raise UserError(f"the bank takes maps in groups of {bank.channels}, got {maps} maps")


def _products(
    spectrum: Tensor, bank: FilterBank, pairs: Pairs | None
) -> Num[Tensor, "*batch paths *grid"]:
    dimensions, channels = len(bank.grid), bank.channels
    if channels == 1 and pairs is not None:
        parents, filters = pairs
        return spectrum.index_select(-dimensions - 1, parents) * bank.filters[filters, 0]
    grouped = spectrum.unflatten(-dimensions - 1, (-1, 1, channels))
    product = grouped * bank.filters
    product = product.sum(-dimensions - 1).flatten(-dimensions - 2, -dimensions - 1)
    if pairs is None:
        return product
    groups, filters = pairs
    return product.index_select(-dimensions - 1, groups * len(bank.filters) + filters)


def _folded(spectrum: Tensor, dimensions: int, factor: int) -> Tensor:
    if factor == 1:
        return spectrum
    lead = spectrum.shape[: spectrum.ndim - dimensions]
    sizes = spectrum.shape[spectrum.ndim - dimensions :]
    split = spectrum.reshape(*lead, *(part for n in sizes for part in (factor, n // factor)))
    return split.mean([len(lead) + 2 * axis for axis in range(dimensions)])


def _inverse(spectrum: Tensor, dimensions: int) -> Tensor:
    return torch.fft.ifftn(spectrum, dim=tuple(range(-dimensions, 0)))
