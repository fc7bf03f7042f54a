"""Scattering networks: features with proofs, of any depth, each layer its own.

    U[q] f = U_n[l_n] ... U_1[l_1] f,  q = (l_1, ..., l_n)          the path q
    Phi^n f = { U[q] f * chi_n : q of length n }                    the features of depth n

where chi_n is the output filter of layer n + 1. On a periodic grid, in the counting norm, every
statement of `rectified.scattering.bounds` about them is exact.

A network takes `(*batch, channels, *grid)` and gives, for each depth, `(*batch, paths, *grid_n)`.
A channel is a path of order 0; paths come parents first.

References:
    Wiatowski and Bölcskei, A Mathematical Theory of Deep Convolutional Neural Networks for Feature
    Extraction, 2018, arXiv 1512.06293; Wiatowski, Tschannen, Stanić, Grohs and Bölcskei, Discrete
    deep feature extraction: a theory and new architectures, 2016, arXiv 1605.08283.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Num
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.scattering.filter_banks import FilterBank, Frame
from rectified.scattering.layers import Layer, Pairs, advance, banks, output
from rectified.scattering.windows import Grid

_CHUNK = 2**22  # values of the largest product that is held at once


def features(
    x: Num[Tensor, "*batch channels *grid"],
    layers: Sequence[Layer],
    *,
    last: Frame | None = None,
    dimensions: int = 2,
) -> list[Num[Tensor, "..."]]:
    """The features of every depth, with banks made on the spot: gradients reach learnt filters.

    Args:
        x: signals, real or complex.
        layers: any number.
        last: the frame whose output filter ends the network, `lowpass(1)` if not given.
        dimensions: of the grid, the last axes of x.

    Returns:
        One tensor per depth, from 0 to the number of layers.

    Raises:
        UserError: if x has NaN, or does not fit the layers.

    Example:
        >>> from rectified.scattering import Layer, wavelets
        >>> found = features(torch.randn(5, 1, 16, 16), [Layer(wavelets(J=2, L=4))] * 2)
        >>> [tuple(one.shape) for one in found]
        [(5, 1, 16, 16), (5, 16, 8, 8), (5, 256, 4, 4)]
    """
    return ScatteringNetwork(layers, tuple(x.shape[-dimensions:]), last=last)(x)


class ScatteringNetwork(nn.Module):
    """A scattering network on one grid. It computes where and in what precision its input is.

    Args:
        layers: any number.
        grid: of the input, one size per axis.
        last: the frame whose output filter ends the network, `lowpass(1)` if not given.

    Attributes:
        layers: as given.
        banks: of every layer and of the last output filter, in float64.
        kept: for each layer which paths go on; None means all. See `paths.prune_paths`.
        channels: that the input must have, if paths were pruned.

    Raises:
        UserError: if a grid on the way is too small, or a pooling factor does not divide it.

    Example:
        >>> from rectified.scattering import average, curvelets, modulus, tanh, weyl_heisenberg
        >>> network = ScatteringNetwork(
        ...     [Layer(curvelets(J=2), modulus, average(2)), Layer(weyl_heisenberg(4), tanh)],
        ...     grid=(32, 32))
        >>> [tuple(one.shape) for one in network(torch.randn(2, 3, 32, 32))]
        [(2, 3, 32, 32), (2, 72, 16, 16), (2, 1080, 8, 8)]
    """

    def __init__(self, layers: Sequence[Layer], grid: Grid, *, last: Frame | None = None) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.banks = banks(layers, tuple(grid), last)
        self.kept: tuple[Pairs | None, ...] = (None,) * len(self.layers)
        self.channels: int | None = None
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[FilterBank, ...]] = {}

    @property
    def grid(self) -> Grid:
        """Of the input."""
        return self.banks[0].grid

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self.layers)

    def forward(self, x: Num[Tensor, "*batch channels *grid"]) -> list[Num[Tensor, "..."]]:
        """The features of every depth.

        Raises:
            UserError: if x has NaN or infinity, another grid, or is complex before a half bank.
        """
        self._check(x)
        lead = x.shape[: x.ndim - len(self.grid) - 1]
        signals = x.reshape(-1, *x.shape[len(lead) :])
        parts = [
            [found for _, found in self._propagate(part)]
            for part in signals.split(self._chunk(x.shape[len(lead)]))
        ]
        joined = [torch.cat(depth) for depth in zip(*parts, strict=True)]
        return [one.reshape(*lead, *one.shape[1:]) for one in joined]

    def propagated(self, x: Num[Tensor, "*batch channels *grid"]) -> list[Num[Tensor, "..."]]:
        """The maps U[q] x of every depth, before their output filter; from x itself on.

        Raises:
            UserError: as in calling the network.
        """
        self._check(x)
        return [maps for maps, _ in self._propagate(x)]

    def count_paths(self, depth: int, channels: int = 1) -> int:
        """The number of paths at a depth, for a number of channels."""
        count = channels
        for bank, kept in zip(self.banks[:depth], self.kept, strict=False):
            count = count // bank.channels * len(bank.filters) if kept is None else len(kept[0])
        return count

    def _propagate(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Maps and features, depth by depth."""
        maps, axes = x, tuple(range(-len(self.grid), 0))
        for depth, bank in enumerate(self._banks_for(x)):
            is_real = not maps.is_complex()
            spectrum = torch.fft.fftn(maps, dim=axes)
            yield maps, output(spectrum, bank, is_real=is_real)
            if depth < self.depth:
                pairs = self.kept[depth]
                maps = advance(spectrum, bank, self.layers[depth], is_real=is_real, pairs=pairs)

    def _banks_for(self, x: Tensor) -> tuple[FilterBank, ...]:
        key = x.device, x.real.dtype
        if key not in self._placed:
            self._placed[key] = tuple(bank.to(*key) for bank in self.banks)
        return self._placed[key]

    def _chunk(self, channels: int) -> int:
        """The number of signals that go through at once."""
        sizes = [
            self.count_paths(depth + 1, channels) * math.prod(bank.grid)
            for depth, bank in enumerate(self.banks[:-1])
        ]
        return max(1, _CHUNK // max(sizes, default=1))

    def _check(self, x: Tensor) -> None:
        dimensions = len(self.grid)
        if x.ndim <= dimensions or tuple(x.shape[-dimensions:]) != self.grid:
            raise UserError(
                f"x must have shape (*batch, channels, {', '.join(map(str, self.grid))}), "
                f"got {tuple(x.shape)}"
            )
        channels = x.shape[-dimensions - 1]
        if self.channels not in (None, channels):
            raise UserError(
                f"x must have {self.channels} channels, as when paths were pruned, got {channels}"
            )
        if not x.detach().isfinite().all():
            raise UserError("x must be finite, got NaN or infinity")
