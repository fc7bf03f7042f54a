"""Signals and deformations with everything about them known: what the bounds are measured on.

A signal is a function on the unit torus in the plane, so that it can be deformed without any
interpolation: F f(x) = f(x - tau(x)) is just f at other points. Each knows the bound on how far a
deformation of given size moves it (`bounds.deformation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.scattering.bounds.deformation import (
    band_limited_bound,
    cartoon_bound,
    gradient_bound,
    lipschitz_bound,
)

Points = Float[Tensor, "2 height width"]


class Signal(Protocol):
    """A function on the torus."""

    def __call__(self, points: Points, /) -> Float[Tensor, "height width"]:
        """Its values."""
        ...

    def moved_at_most(self, tau: float, delta: float, /) -> float:
        """A bound on ||f - F_tau f|| in L2, for sup |tau| and d sup |D tau|."""
        ...


def grid_points(height: int, width: int) -> Points:
    """The points of a grid on the unit torus.

    Example:
        >>> grid_points(2, 4)[:, 1, 3].tolist()
        [0.5, 0.75]
    """
    axes = [torch.arange(size, dtype=torch.float64) / size for size in (height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@dataclass(frozen=True, eq=False)
class TrigonometricPolynomial:
    """sum_k a_k cos(2 pi <k, x>) + b_k sin(2 pi <k, x>), over half of the k with |k| <= radius.

    Args:
        waves: the k, none twice, none opposite to another, without 0.
        cosines: the a_k.
        sines: the b_k.
    """

    waves: Float[Tensor, "waves 2"]
    cosines: Float[Tensor, " waves"]
    sines: Float[Tensor, " waves"]

    @classmethod
    def random(cls, radius: int, generator: torch.Generator) -> TrigonometricPolynomial:
        """Normal coefficients on all frequencies up to a radius, norm 1.

        Example:
            >>> f = TrigonometricPolynomial.random(3, torch.Generator().manual_seed(0))
            >>> round(f(grid_points(8, 8)).square().mean().item(), 9), f.radius
            (1.0, 3.0)
        """
        side = torch.arange(-radius, radius + 1, dtype=torch.float64)
        waves = torch.cartesian_prod(side, side)
        inside = (waves.norm(dim=1) <= radius) & (waves @ torch.tensor([1.0, 1e-3]).double() > 0)
        waves = waves[inside]
        drawn = torch.randn(2, len(waves), generator=generator, dtype=torch.float64)
        cosines, sines = drawn * math.sqrt(2) / drawn.norm()
        return cls(waves, cosines, sines)

    def __call__(self, points: Points) -> Float[Tensor, "height width"]:
        """Its values."""
        phase = self._phase(points)
        return self._sum(self.cosines, phase.cos()) + self._sum(self.sines, phase.sin())

    def gradient(self, points: Points) -> Points:
        """Its gradient at points."""
        phase = self._phase(points)
        parts = [
            self._sum(self.sines * axis, phase.cos()) - self._sum(self.cosines * axis, phase.sin())
            for axis in (2 * math.pi * self.waves).unbind(1)
        ]
        return torch.stack(parts)

    @property
    def radius(self) -> float:
        """The largest |k|."""
        return float(self.waves.norm(dim=1).max())

    @property
    def norm(self) -> float:
        """||f|| in L2."""
        return float(self._powers.sum().sqrt())

    @property
    def gradient_norm(self) -> float:
        """||grad f|| in L2."""
        return 2 * math.pi * float((self._powers * self.waves.square().sum(1)).sum().sqrt())

    @property
    def _powers(self) -> Tensor:
        return (self.cosines**2 + self.sines**2) / 2

    def moved_at_most(self, tau: float, delta: float) -> float:
        """The bound of its own gradient, which is below that of its class."""
        return gradient_bound(self.gradient_norm, self.norm, tau=tau, delta=delta)

    def class_moved_at_most(self, tau: float, delta: float) -> float:
        """The bound of all signals of its radius and norm."""
        return band_limited_bound(self.radius, self.norm, tau=tau, delta=delta)

    def _phase(self, points: Points) -> Tensor:
        return 2 * math.pi * torch.einsum("wd,dij->wij", self.waves, points)

    def _sum(self, weights: Tensor, values: Tensor) -> Tensor:
        return torch.einsum("w,wij->ij", weights, values)


@dataclass(frozen=True, eq=False)
class Cartoon:
    """Two smooth waves, the second within a disc only.

    Args:
        outside: amplitude of the wave everywhere.
        inside: largest value in the disc.
        radius: of the disc, below 1/2.
        centre: of the disc; off the grid's symmetry, so that points cross its edge one by one.
    """

    outside: float = 0.3
    inside: float = 1.0
    radius: float = 0.27
    centre: tuple[float, float] = (0.4871, 0.5172)

    def __call__(self, points: Points) -> Float[Tensor, "height width"]:
        """Its values."""
        background = self.outside * torch.cos(2 * math.pi * points[0])
        wave = self.inside * (3 + torch.sin(2 * math.pi * points[1])) / 4
        return background + wave * (self._radius(points) <= self.radius)

    def moved_at_most(self, tau: float, delta: float) -> float:
        """Smooth parts, and the jump over the tube around the disc's edge."""
        smooth = 2 * math.pi * (self.outside + self.inside / 4)
        length = 2 * math.pi * self.radius
        return cartoon_bound(smooth, self.inside, length, tau=tau, reach=self.radius)

    def count_near_edge(self, points: Points, tau: float) -> int:
        """Points within tau of the jump: on a grid this takes the place of the tube's area."""
        return int(((self._radius(points) - self.radius).abs() <= tau).sum())

    def moved_at_most_on(self, points: Points, tau: float) -> float:
        """The bound for a sum over grid points instead of an integral, divided by their number."""
        count = points[0].numel()
        smooth = 2 * math.pi * (self.outside + self.inside / 4)
        return smooth * tau + self.inside * math.sqrt(self.count_near_edge(points, tau) / count)

    def _radius(self, points: Points) -> Tensor:
        centre = points.new_tensor(self.centre)[:, None, None]
        return ((points - centre + 0.5) % 1 - 0.5).norm(dim=0)


@dataclass(frozen=True, eq=False)
class Cones:
    """Three cones of slope `slope`; Lipschitz, not smooth.

    Args:
        slope: of each; they do not meet.
    """

    slope: float = 4.0
    tips: tuple[tuple[float, float, float], ...] = (
        (0.3, 0.3, 0.2),
        (0.7, 0.35, 0.15),
        (0.5, 0.75, 0.2),
    )

    def __call__(self, points: Points) -> Float[Tensor, "height width"]:
        """Its values."""
        values = torch.zeros_like(points[0])
        for first, second, radius in self.tips:
            tip = points.new_tensor([first, second])[:, None, None]
            away = ((points - tip + 0.5) % 1 - 0.5).norm(dim=0)
            values = values + self.slope * (radius - away).clamp_min(0)
        return values

    def moved_at_most(self, tau: float, delta: float) -> float:
        """The Lipschitz constant over the support, grown by tau."""
        area = sum(math.pi * (radius + tau) ** 2 for *_, radius in self.tips)
        return lipschitz_bound(self.slope, min(1.0, area), tau=tau)


@dataclass(frozen=True, eq=False)
class Deformation:
    """x -> x - tau(x), tau a vector of trigonometric polynomials.

    Args:
        parts: one per axis, of largest length 1 together.
        size: sup |tau|, in periods.
    """

    parts: tuple[TrigonometricPolynomial, TrigonometricPolynomial]
    size: float

    @classmethod
    def random(cls, size: float, radius: int, generator: torch.Generator) -> Deformation:
        """A random one of frequencies up to `radius`, scaled to its supremum on a fine grid.

        Example:
            >>> tau = Deformation.random(0.01, 2, torch.Generator().manual_seed(0))
            >>> tau.delta < 0.5
            True
        """
        drawn = [TrigonometricPolynomial.random(radius, generator) for _ in range(2)]
        largest = _largest([part(grid_points(_FINE, _FINE)) for part in drawn])
        scaled = [
            TrigonometricPolynomial(p.waves, p.cosines / largest, p.sines / largest) for p in drawn
        ]
        return cls((scaled[0], scaled[1]), size)

    def __call__(self, points: Points) -> Points:
        """The points x - tau(x)."""
        return points - self.size * torch.stack([part(points) for part in self.parts])

    @property
    def delta(self) -> float:
        """d sup |D tau|, the largest entry in modulus."""
        fine = grid_points(_FINE, _FINE)
        entries = [part.gradient(fine).abs().max() for part in self.parts]
        return 2 * self.size * float(max(entries)) * _SLACK


_FINE = 256  # points per axis on which suprema of slow waves are taken
_SLACK = 1.001  # what a wave of at most 4 periods can add between them: (pi * 4 / 256)^2 / 2


def _largest(parts: list[Tensor]) -> float:
    return float(torch.stack(parts).square().sum(0).max().sqrt()) * _SLACK
