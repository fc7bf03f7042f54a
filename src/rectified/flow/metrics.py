"""Metrics of a flow: how good and how straight it is.

Geometry of a flow, from its own trajectories Z_t:

    straightness      S = int_0^1 E|(Z_1 - Z_0) - dZ_t/dt|^2 dt: 0 where one Euler step is exact
    first-order gap   int E|(x1 - x0)(Z_t, t) - (Z_1 - Z_0)|^2 dt / E|Z_1 - Z_0|^2: 0 where one
                      natural Euler (DDIM) step is exact, on any path; S / cost on the straight one
    transport cost    E|Z_1 - Z_0|^2, beside the least possible between the same points

Distance between samples:

    wasserstein2      exact, by optimal assignment of equally many points
    sliced            mean over directions of the one-dimensional distance, squared; its root
    frechet           of features of any network (`rectified.statistics`)

Straightness is the paper's sum over dimensions (`total`); rf++'s code divides it by their number
(`per_dimension`); `relative` divides by the transport cost and has no scale. Measure it on a fine
grid: a single step is straight by construction.

References:
    Liu et al., 2022, arXiv 2209.03003 (straightness, transport cost); Wang et al., 2024,
    arXiv 2410.07303 (first order); Bonneel et al., 2015 (sliced Wasserstein).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.flow.couplings import assignment
from rectified.flow.grids import uniform_grid
from rectified.flow.paths import Points
from rectified.flow.solvers import HasEndpoints, Stepper, Velocity, euler, integrate, mix
from rectified.statistics import gaussian_distance

_STEPS = 100  # fine enough that halving them moves a curved flow's straightness by about a percent


@dataclass(frozen=True)
class Straightness:
    """The distance of trajectories from straight lines at constant speed.

    Attributes:
        total: the integral of the squared deviation, summed over dimensions.
        per_dimension: that divided by the number of dimensions.
        relative: `total` divided by the transport cost; without scale.
    """

    total: float
    per_dimension: float
    relative: float


@torch.no_grad()
def straightness(
    velocity: Velocity, x0: Points, *, steps: int = _STEPS, step: Stepper = euler
) -> Straightness:
    """S of the flow that starts at `x0`.

    Args:
        velocity: of the flow.
        x0: states at t = 0.
        steps: of the grid; at least 2.
        step: of the solver.

    Raises:
        UserError: for fewer than two steps, where every flow looks straight.

    Example:
        >>> x0 = torch.zeros(4, 2)
        >>> straightness(lambda x, t: torch.ones_like(x), x0).total < 1e-9
        True
    """
    if steps < 2:
        raise UserError(f"steps must be at least 2 to see a bend, got {steps}")
    path = integrate(velocity, x0, uniform_grid(steps).to(x0), step)
    whole = path[-1] - path[0]
    bends = [
        (_rows(steps * (after - before) - whole)).square().sum(1).mean()
        for before, after in pairwise(path)
    ]
    total = float(torch.stack(bends).mean())
    cost = transport_cost(path[0], path[-1])
    return Straightness(total, total / whole[0].numel(), total / cost if cost else math.nan)


def _rows(x: Points) -> Float[Tensor, "batch dimensions"]:
    return x.flatten(1).double()


@torch.no_grad()
def first_order_gap(field: HasEndpoints, x0: Points, *, steps: int = _STEPS) -> float:
    """The change of the predicted end points along the network's own trajectories.

    Below about 0.02 one natural Euler step does what many do, and `renoise` is safe.

    Args:
        field: a network with its path.
        x0: source points (as `gaussian` draws them).
        steps: of the solver.

    Raises:
        UserError: for fewer than two steps.
    """
    if steps < 2:
        raise UserError(f"steps must be at least 2 to see a change, got {steps}")
    seen: list[Tensor] = []

    def step(_: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
        ends = field.endpoints(x, t)
        seen.append(ends.x1 - ends.x0)
        return mix(field.path, ends, s)

    path = integrate(lambda x, _: x, field.path.start(x0), uniform_grid(steps).to(x0), step)
    whole = path[-1] - x0
    gaps = torch.stack([_rows(one - whole).square().sum(1).mean() for one in seen])
    cost = transport_cost(x0, path[-1])
    return float(gaps.mean()) / cost if cost else math.nan


def transport_cost(x0: Points, x1: Points) -> float:
    """E|x1 - x0|^2 over pairs, summed over dimensions.

    Example:
        >>> transport_cost(torch.zeros(3, 2), torch.ones(3, 2))
        2.0
    """
    return float(_rows(x1 - x0).square().sum(1).mean())


def optimal_cost(x0: Points, x1: Points) -> float:
    """The least E|x1 - x0|^2 over all ways to pair the same points (exact assignment).

    Means little in many dimensions, where every assignment of few points costs about the same.

    Example:
        >>> optimal_cost(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]]))
        0.0
    """
    _equally_many(x0, x1)
    if not bool(torch.isfinite(x0).all() & torch.isfinite(x1).all()):
        return math.nan  # a flow that has diverged has no distance, and is no reason to stop
    return transport_cost(x0[assignment(x0, x1)], x1)


def wasserstein2(first: Points, second: Points) -> float:
    """The exact 2-Wasserstein distance between equally many points, in their unit.

    Raises:
        UserError: if there are not equally many, of one shape.

    Example:
        >>> wasserstein2(torch.zeros(5, 2), torch.full((5, 2), 3.0)) == 18**0.5
        True
    """
    return math.sqrt(optimal_cost(first, second))


def _equally_many(first: Points, second: Points) -> None:
    if first.shape != second.shape or not len(first):
        raise UserError(
            f"both sets must hold equally many points of one shape, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )


def sliced_wasserstein(
    first: Points, second: Points, *, directions: int = 500, generator: torch.Generator
) -> float:
    """Root of the mean over directions of the squared one-dimensional Wasserstein distance.

    Args:
        first: points.
        second: as many, of the same shape.
        directions: drawn uniformly from the sphere.
        generator: of the directions.

    Raises:
        UserError: if there are not equally many points of one shape, or no directions.

    Example:
        >>> points = torch.rand(100, 2)
        >>> sliced_wasserstein(points, points + 1, generator=torch.Generator().manual_seed(0)) > 0.9
        True
    """
    _equally_many(first, second)
    if directions < 1:
        raise UserError(f"directions must be at least 1, got {directions}")
    dimensions = first[0].numel()
    lines = torch.randn(dimensions, directions, generator=generator, dtype=torch.float64)
    lines = (lines / lines.norm(dim=0)).to(first.device)
    one, other = (_rows(points) @ lines for points in (first, second))
    return float((one.sort(0).values - other.sort(0).values).square().mean().sqrt())


@torch.no_grad()
def feature_distance(
    features: Callable[[Any], Tensor],
    first: Float[Tensor, "n ..."],
    second: Float[Tensor, "m ..."],
    *,
    batch: int = 1000,
) -> float:
    """The squared Fréchet distance between the features of two sets of points.

    Args:
        features: points to vectors: any network, without its last layer.
        first: points.
        second: points; compare sets of one size, and give the floor of real against real.
        batch: points at a time.
    """
    one, other = (
        torch.cat([features(part).flatten(1) for part in points.split(batch)])
        for points in (first, second)
    )
    return gaussian_distance(one, other)
