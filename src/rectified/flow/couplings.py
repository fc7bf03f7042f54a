"""Couplings: which source point a target point is paired with.

    x0, x1 = coupling(x1, generator)

Independent pairs train a first flow. Pairs that a flow made, or an optimal assignment, cross less,
so that the flow learnt from them is straighter. A source is anything that draws points like given
ones: Gaussian noise, or another data set (domain transfer).

References:
    Liu et al., 2022, arXiv 2209.03003 (independent, given pairs); Tong et al., Improving and
    generalizing flow-based generative models with minibatch optimal transport, 2023,
    arXiv 2302.00482; Pooladian et al., 2023, arXiv 2304.14772.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rectified.errors import UserError
from rectified.flow.paths import Points

Source = Callable[[Points, torch.Generator | None], Points]
"""Draws as many source points as it is given target points, of the same shape."""


@runtime_checkable
class Coupling(Protocol):
    """From target points to pairs."""

    def __call__(
        self, x1: Tensor, generator: torch.Generator | None = None, /
    ) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class ByLabels(Protocol):
    """A coupling that depends on the labels of the batch: under given ones it is a `Coupling`."""

    def given(self, labels: Tensor, /) -> Coupling: ...


def gaussian(x1: Points, generator: torch.Generator | None = None) -> Points:
    """Standard normal points, as many as `x1` and shaped like it."""
    device = generator.device if generator is not None else x1.device
    return torch.randn(x1.shape, generator=generator, device=device, dtype=x1.dtype).to(x1.device)


@dataclass(frozen=True, eq=False)
class FromSet:
    """A source that draws from a set of points, with replacement: domain transfer.

    Args:
        points: at least one.

    Raises:
        UserError: if there is no point, or (when drawing) its shape is not the target's.
    """

    points: Points

    def __post_init__(self) -> None:
        if not len(self.points):
            raise UserError("the source must hold at least one point, got none")

    def __call__(self, x1: Points, generator: torch.Generator | None = None) -> Points:
        """Draw as many points as `x1` has."""
        if self.points.shape[1:] != x1.shape[1:]:
            raise UserError(
                f"source and target must have one dimension, got points of shape "
                f"{tuple(self.points.shape[1:])} and {tuple(x1.shape[1:])}"
            )
        rows = _rows(len(self.points), len(x1), generator, self.points.device)
        return self.points[rows].to(x1)


def _rows(
    below: int, count: int, generator: torch.Generator | None, device: torch.device
) -> Int64[Tensor, " count"]:
    place = generator.device if generator is not None else device
    return torch.randint(below, (count,), generator=generator, device=place).to(device)


@dataclass(frozen=True)
class Independent:
    """Every target point with a source point drawn for it.

    Example:
        >>> x0, x1 = Independent()(torch.zeros(5, 2), torch.Generator().manual_seed(0))
        >>> x0.shape
        torch.Size([5, 2])
    """

    source: Source = gaussian

    def __call__(
        self, x1: Points, generator: torch.Generator | None = None, /
    ) -> tuple[Points, Points]:
        """Draw a source point for each target point."""
        return self.source(x1, generator), x1


@dataclass(frozen=True)
class MinibatchOT:
    """The assignment within a batch that moves least: min over permutations of sum |x0 - x1|^2.

    The assignment itself, not draws from its plan: every source and every target point is used
    once. Not for conditional flows, whose condition it would have to respect (`WithinClass`).

    Args:
        source: of the points that are assigned.
    """

    source: Source = gaussian

    def __call__(
        self, x1: Points, generator: torch.Generator | None = None, /
    ) -> tuple[Points, Points]:
        """Draw source points and put them in the order of their targets."""
        x0 = self.source(x1, generator)
        return x0[assignment(x0, x1)], x1


def assignment(x0: Points, x1: Points) -> Int64[Tensor, " batch"]:
    """The row of x0 for every row of x1 at the least total squared distance, exactly (SciPy).

    Raises:
        UserError: if a point holds a NaN or infinity.

    Example:
        >>> assignment(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.2], [0.1]])).tolist()
        [1, 0]
    """
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(costs(x0, x1).cpu().numpy())
    return torch.from_numpy(columns).to(x0.device)


def costs(x0: Points, x1: Points) -> Float[Tensor, "targets sources"]:
    """Squared distances between two clouds, each moved to the origin and scaled to spread 1.

    Only the products x0 . x1 tell assignments apart, so that moving or scaling a whole cloud does
    not change the best; SciPy is up to ten times as fast on clouds that lie upon each other.

    Raises:
        UserError: if a point holds a NaN or infinity.
    """
    flat0, flat1 = _standing(x0), _standing(x1)
    cost = (flat0.square().sum(1) - 2 * flat1 @ flat0.T) + flat1.square().sum(1, keepdim=True)
    if not bool(torch.isfinite(cost).all()):
        raise UserError("points to assign must be finite: one holds a NaN or infinity")
    return cost


def _standing(x: Points) -> Tensor:
    """Points around the origin, at a mean distance of 1."""
    flat = x.detach().flatten(1).double()
    flat = flat - flat.mean(0)
    return flat / flat.square().sum(1).mean().sqrt().clamp(min=torch.finfo(flat.dtype).tiny)


@dataclass(frozen=True, eq=False)
class Given:
    """Pairs from a set: those that a flow made, or real data with their inverted noise.

    The target points it is called with only say how many pairs to draw.

    Args:
        x0: source points.
        x1: their targets, row by row.

    Raises:
        UserError: if they do not pair.
    """

    x0: Points
    x1: Points

    def __post_init__(self) -> None:
        if self.x0.shape != self.x1.shape or not len(self.x0):
            raise UserError(
                f"pairs must be as many source as target points of one shape, at least one; got "
                f"{tuple(self.x0.shape)} and {tuple(self.x1.shape)}"
            )

    def __call__(
        self, x1: Points, generator: torch.Generator | None = None, /
    ) -> tuple[Points, Points]:
        """Draw as many pairs as `x1` has points, with replacement."""
        rows = _rows(len(self.x0), len(x1), generator, self.x0.device)
        return self.x0[rows].to(x1), self.x1[rows].to(x1)


@dataclass(frozen=True)
class Mixture:
    """Every pair from one of several couplings, chosen by weight.

    Args:
        parts: the couplings.
        weights: one each, at least 0, not all 0.
    """

    parts: Sequence[Coupling]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.weights):
            raise UserError(
                f"a mixture needs one weight per part, got {len(self.parts)} parts and "
                f"{len(self.weights)} weights"
            )
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise UserError(f"weights must be at least 0 and not all 0, got {self.weights}")

    def __call__(
        self, x1: Points, generator: torch.Generator | None = None, /
    ) -> tuple[Points, Points]:
        """Draw the part of every row, then the pairs part by part."""
        device = generator.device if generator is not None else x1.device
        weights = torch.tensor(self.weights, device=device)
        part = torch.multinomial(weights, len(x1), True, generator=generator).to(x1.device)
        x0, y1 = torch.empty_like(x1), torch.empty_like(x1)
        for number, coupling in enumerate(self.parts):
            chosen = part == number
            if chosen.any():
                x0[chosen], y1[chosen] = coupling(x1[chosen], generator)
        return x0, y1


@dataclass(frozen=True)
class WithinClass:
    """A coupling applied to each class of a batch alone, so that a condition stays with its pair.

    Args:
        inner: must keep the target points in place, as `MinibatchOT` does.
    """

    inner: Coupling

    def given(self, labels: Int64[Tensor, " batch"], /) -> Coupling:
        """The coupling of a batch with these labels."""
        return partial(self, labels=labels)

    def __call__(
        self,
        x1: Points,
        generator: torch.Generator | None = None,
        /,
        labels: Int64[Tensor, " batch"] | None = None,
    ) -> tuple[Points, Points]:
        """Couple within each class.

        Raises:
            UserError: without labels.
        """
        if labels is None:
            raise UserError("a coupling within classes needs the labels of the batch")
        x0 = torch.empty_like(x1)
        for label in labels.unique():
            chosen = labels == label
            x0[chosen], _ = self.inner(x1[chosen], generator)
        return x0, x1


independent = Independent()
minibatch_ot = MinibatchOT()
