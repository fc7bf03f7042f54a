"""The likelihood of points under a flow, by the instantaneous change of variables.

    log p(x1) = log p0(x0) - int_0^1 div v(x_t, t) dt,     x_t followed backward from x1

The divergence is exact (a backward pass per dimension) or Hutchinson's estimate e^T (dv/dx) e with
random signs e, which is unbiased.

References:
    Chen et al., Neural ordinary differential equations, 2018, arXiv 1806.07366; Grathwohl et al.,
    FFJORD, 2018, arXiv 1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.flow.fields import Field
from rectified.flow.grids import uniform_grid
from rectified.flow.paths import Points, straight
from rectified.flow.solvers import Velocity, integrate

Divergence = Callable[[Velocity, Points, Tensor], tuple[Points, Float[Tensor, " batch"]]]


def exact_divergence(
    velocity: Velocity, x: Points, t: Tensor
) -> tuple[Points, Float[Tensor, " batch"]]:
    """The velocity and its divergence, one backward pass per dimension."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, t)
        flat = v.flatten(1)
        total = torch.zeros_like(flat[:, 0])
        for i in range(flat.shape[1]):
            total = total + _gradient(flat[:, i].sum(), x).flatten(1)[:, i]
    return v.detach(), total.detach()


@dataclass(frozen=True, eq=False)
class Hutchinson:
    """An unbiased estimate of the divergence.

    Args:
        generator: of the signs.
        probes: over how many it averages, at least 1.
    """

    generator: torch.Generator
    probes: int = 1

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise UserError(f"probes must be at least 1, got {self.probes}")

    def __call__(
        self, velocity: Velocity, x: Points, t: Tensor
    ) -> tuple[Points, Float[Tensor, " batch"]]:
        """The velocity, and the mean of e^T (dv/dx) e."""
        device = self.generator.device
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, t)
            total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for _ in range(self.probes):
                draws = torch.rand(x.shape, generator=self.generator, device=device)
                signs = (draws < 0.5).to(x) * 2 - 1
                row = _gradient((v * signs).sum(), x)
                total = total + (row * signs).flatten(1).sum(1)
        return v.detach(), total.detach() / self.probes


def _gradient(value: Tensor, x: Points) -> Points:
    """d value / d x; zero for a velocity that does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


class _Weighed(NamedTuple):
    """A point, and the divergence gathered on its way."""

    x: Tensor
    log_volume: Tensor


def log_prob(
    velocity: Velocity,
    x1: Points,
    *,
    steps: int = 100,
    divergence: Divergence = exact_divergence,
) -> Float[Tensor, " batch"]:
    """Log-density of points under the flow from a standard normal source, in nats.

    Args:
        velocity: of the flow; a `Field` on a curved path is followed on the straight one.
        x1: points at t = 1.
        steps: of the classical Runge-Kutta method, backward.
        divergence: `exact_divergence`, or `Hutchinson(generator)`.

    Example:
        >>> still = lambda x, t: 0 * x
        >>> round(float(log_prob(still, torch.zeros(1, 2), steps=2)), 4)  # -log(2 pi)
        -1.8379
    """

    def slope(state: _Weighed, t: Tensor) -> _Weighed:
        return _Weighed(*divergence(velocity, state.x, t))

    if isinstance(velocity, Field) and not velocity.path.is_straight:
        # the same flow, where velocities are finite at the data and noise has deviation 1
        velocity = velocity.on(straight)
    start = _Weighed(x1, torch.zeros(len(x1), dtype=x1.dtype, device=x1.device))
    backward = uniform_grid(steps).to(x1).flip(0)
    end = integrate(slope, start, backward, _rk4)[-1]
    flat = end.x.flatten(1)
    normal = -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))
    return normal + end.log_volume


def _rk4(velocity: Velocity, state: _Weighed, t: Tensor, s: Tensor) -> _Weighed:
    h = s - t

    def moved(by: _Weighed, share: float) -> _Weighed:
        return _Weighed(
            *(value + share * h * slope for value, slope in zip(state, by, strict=True))
        )

    v1 = velocity(state, t)
    v2 = velocity(moved(v1, 0.5), t + 0.5 * h)
    v3 = velocity(moved(v2, 0.5), t + 0.5 * h)
    v4 = velocity(moved(v3, 1.0), s)
    mean = _Weighed(
        *((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(v1, v2, v3, v4, strict=True))
    )
    return moved(mean, 1.0)
