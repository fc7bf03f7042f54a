"""A filter bank on a periodic grid: one output filter chi, and filters g_l that lead on.

    A ||f||^2  <=  ||f * chi||^2 + sum_l ||f * g_l||^2  <=  B ||f||^2

where A and B are the smallest and the largest value, over the DFT bins k, of the Littlewood-Paley
sum |chi(k)|^2 + sum_l |g_l(k)|^2. That is exact: circular convolution is diagonal in frequency. The
output filter counts, since it takes its share of the energy. A bank is tight if A = B.

A *half* bank keeps one of each pair of opposite filters and serves real signals alone, for which
the sum may be averaged over k and -k. A bank with several `channels` mixes groups of that many
maps, as a convolution layer does; the sum over l is then the matrix G(k)* G(k), and its
eigenvalues take the place of the sum (Sedghi, Gupta and Long, 2019, arXiv 1805.10408).

Responses are held in frequency, in float64. A `Frame` gives the bank of any grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Num
from torch import Tensor

from rectified.errors import UserError
from rectified.scattering.windows import Grid, mirrored

_ASYMMETRY = 100  # rounding errors that the response of a real filter may have


@dataclass(frozen=True)
class Atom:
    """The place of a filter in frequency.

    Attributes:
        scale: octaves of its centre below the Nyquist frequency; None where it has no centre.
        angle: of its centre in radians; None where it has no direction.
    """

    scale: float | None = None
    angle: float | None = None


@dataclass(frozen=True, eq=False)
class FilterBank:
    """Frequency responses on one grid.

    Args:
        output: the response of chi.
        filters: the responses of the g_l; a bank that takes each map alone has one channel.
        half: whether the bank is for real signals alone.
        atoms: what each filter is, one per filter.

    Raises:
        UserError: if the shapes do not fit, a value is not finite, or a half bank mixes channels.

    Example:
        >>> from rectified.scattering import wavelets
        >>> bank = wavelets(J=2, L=4)((16, 20))
        >>> len(bank.filters), round(bank.lower, 12), round(bank.upper, 12)
        (16, 1.0, 1.0)
    """

    output: Num[Tensor, "*grid"]
    filters: Num[Tensor, "filters channels *grid"]
    half: bool = False
    atoms: tuple[Atom, ...] = ()

    def __post_init__(self) -> None:
        if self.filters.shape[2:] != self.output.shape:
            raise UserError(
                f"filters must have shape (filters, channels, {_sizes(self.output.shape)}) as the "
                f"output filter's grid says, got {tuple(self.filters.shape)}"
            )
        for name in ("output", "filters"):
            if not getattr(self, name).isfinite().all():
                raise UserError(f"{name} of a filter bank must be finite, got NaN or infinity")
        if self.half and self.channels > 1:
            raise UserError(f"a half bank must have one channel, got {self.channels}")
        if not self.atoms:
            object.__setattr__(self, "atoms", (Atom(),) * len(self.filters))

    def __call__(self, grid: Grid) -> FilterBank:
        """This bank, if it is for `grid`: a bank may stand where a frame is asked for.

        Raises:
            UserError: if it is for another grid.
        """
        if tuple(grid) != self.grid:
            raise UserError(f"the bank is for grid {_sizes(self.grid)}, got {_sizes(grid)}")
        return self

    @property
    def grid(self) -> Grid:
        """The sizes of its axes."""
        return tuple(self.output.shape)

    @property
    def channels(self) -> int:
        """The number of maps that a filter takes."""
        return self.filters.shape[1]

    def littlewood_paley(self, weight: float | Tensor = 1.0) -> Float[Tensor, "*grid"]:
        """|chi|^2 + weight * sum_l |g_l|^2 over the bins; the largest eigenvalue if channels mix.

        Args:
            weight: of the filters that lead on, at least 0.
        """
        _, largest = self._filter_energy
        return self._seen(self.output.abs() ** 2) + weight * largest

    @property
    def lower(self) -> float:
        """The frame bound A."""
        smallest, _ = self._filter_energy
        return float((self._seen(self.output.abs() ** 2) + smallest).detach().min())

    @property
    def upper(self) -> float:
        """The frame bound B."""
        return float(self.littlewood_paley().detach().max())

    @property
    def gain(self) -> float:
        """The largest sum_l |g_l|^2 alone: how much energy can be led on."""
        return float(self._filter_energy[1].detach().max()) if len(self.filters) else 0.0

    @cached_property
    def has_real_filters(self) -> bool:
        """Whether a real map stays real under every g_l."""
        return _is_real(self.filters, len(self.grid))

    @cached_property
    def has_real_output(self) -> bool:
        """Whether a real map stays real under chi."""
        return _is_real(self.output, len(self.grid))

    @cached_property
    def _filter_energy(self) -> tuple[Float[Tensor, "*grid"], Float[Tensor, "*grid"]]:
        """The smallest and the largest energy that the g_l pass on, bin by bin."""
        if self.channels == 1:
            energy = self._seen((self.filters.abs() ** 2).sum((0, 1)))
            return energy, energy
        matrices = self.filters.movedim((0, 1), (-2, -1))
        squares = torch.linalg.svdvals(matrices) ** 2
        largest = squares[..., 0]
        is_deep = len(self.filters) >= self.channels
        return (squares[..., -1] if is_deep else torch.zeros_like(largest)), largest

    def _seen(self, energy: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
        """The part of it that real signals see, if the bank is for them alone."""
        return (energy + mirrored(energy, len(self.grid))) / 2 if self.half else energy

    def to(self, device: torch.device, dtype: torch.dtype) -> FilterBank:
        """The same bank elsewhere, in float32 or float64 (complex responses stay complex)."""
        output, filters = (
            one.to(device, dtype.to_complex() if one.is_complex() else dtype)
            for one in (self.output, self.filters)
        )
        return replace(self, output=output, filters=filters)

    def scaled(self, factor: float | Tensor) -> FilterBank:
        """Every response times `factor`."""
        return replace(self, output=self.output * factor, filters=self.filters * factor)

    def normalised(self, lipschitz: float = 1.0) -> FilterBank:
        """The bank scaled down until max{B, B c^2} <= 1, or itself if that holds.

        Args:
            lipschitz: c, the constant of the non-linearity times that of the pooling.

        References:
            Wiatowski and Bölcskei, A Mathematical Theory of Deep Convolutional Neural Networks for
            Feature Extraction, 2018, arXiv 1512.06293, equation (17).
        """
        size = self.littlewood_paley().max() * max(1.0, lipschitz**2)
        return self if size <= 1 else self.scaled(size**-0.5)

    def tightened(self) -> FilterBank:
        """The canonical tight bank: every response divided by the root of the sum at its bin.

        Raises:
            UserError: if the sum is zero somewhere, or the bank mixes channels.
        """
        if self.channels > 1:
            raise UserError(f"a bank to tighten must have one channel, got {self.channels}")
        energy = self.littlewood_paley()
        _check_positive(energy)
        root = energy.sqrt()
        return replace(self, output=self.output / root, filters=self.filters / root)


Frame = Callable[[Grid], FilterBank]
"""A maker of filter banks for any grid: the semi-discrete frame of the theory."""


def complemented(
    output: Float[Tensor, "*grid"], filters: Num[Tensor, "filters channels *grid"]
) -> FilterBank:
    """A bank of B = 1 that keeps chi as it is: the g_l get the room that it leaves.

    Every g_l is multiplied by sqrt(1 - |chi|^2), then all by one factor.

    Raises:
        UserError: if nothing of the filters is left.
    """
    room = (1 - output.abs() ** 2).clamp_min(0)
    raw = FilterBank(torch.zeros_like(output), filters * room.sqrt())
    energy = raw.littlewood_paley()
    if energy.max() == 0:
        raise UserError("filters must pass something that the output filter does not, got zeros")
    # energy = room * (what the filters pass), so this is the largest of the latter
    passed = torch.where(room > 0, energy / room.clamp_min(torch.finfo(room.dtype).tiny), 0.0)
    return FilterBank(output, raw.filters * passed.max() ** -0.5)


def check_grid(grid: Grid, smallest: int, why: str) -> None:
    """A grid that is too small is refused in one line.

    Raises:
        UserError: if an axis has fewer than `smallest` points.
    """
    if min(grid) < smallest:
        raise UserError(
            f"grid must have at least {smallest} points an axis for {why}, got {_sizes(grid)}"
        )


def _check_positive(energy: Float[Tensor, "*grid"]) -> None:
    empty = (energy <= torch.finfo(energy.dtype).eps * energy.max()).nonzero()
    if len(empty):
        raise UserError(
            "the Littlewood-Paley sum must be positive in every bin, "
            f"got 0 in {len(empty)} of them, first {tuple(empty[0].tolist())}"
        )


def _is_real(response: Tensor, dimensions: int) -> bool:
    response = response.detach()
    difference = (response - mirrored(response, dimensions).conj()).abs()
    return not response.numel() or bool(
        difference.max() <= _ASYMMETRY * torch.finfo(response.dtype).eps * response.abs().max()
    )


def _sizes(grid: Grid | torch.Size) -> str:
    return "x".join(str(size) for size in grid)
