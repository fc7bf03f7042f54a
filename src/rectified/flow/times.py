"""Time laws: at which times of a path a network is trained.

    t = law(count, generator),  t in [0, 1] (count,)        law.density(t) is its density

    uniform        1
    u_shaped       a / (2 (e^a - 1)) (e^(a t) + e^(a (1 - t))): both ends, for reflow
    logit_normal   sigmoid(m + s n): the middle, for a first flow on images
    exponential    a e^(a u) / (e^a - 1), u the distance from the far end
    edm_lognormal  t = 1 / (1 + sigma), ln sigma normal
    EndpointMass   a law, and a share of the draws exactly at t = 0
    Discrete       0, 1/k, ..., (k - 1)/k; k = 1 is what distillation trains

The paper of the U-shape prints e^(a u) + e^(-a u), which is no U on [0, 1]; its code draws what
stands here (symmetric about 1/2), in closed form instead of by root finding.

References:
    Lee, Lin, Fanti, 2024, arXiv 2405.20320 (u_shaped, code `t_dist.py`); Esser et al., 2024,
    arXiv 2403.03206 (logit-normal); Karras et al., 2022, arXiv 2206.00364 (log-normal).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError, choose


@runtime_checkable
class TimeDistribution(Protocol):
    """Draws `count` times in [0, 1]."""

    def __call__(
        self, count: int, generator: torch.Generator | None = None, /
    ) -> Float[Tensor, " count"]: ...


@runtime_checkable
class HasDensity(Protocol):
    """A law that has a density on [0, 1]."""

    def density(self, t: Float[Tensor, " n"], /) -> Float[Tensor, " n"]: ...


def _rand(count: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device if generator else None)


def _randn(count: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(count, generator=generator, device=generator.device if generator else None)


def _inside(t: Tensor, density: Tensor) -> Tensor:
    return torch.where((t >= 0) & (t <= 1), density, 0.0)


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class Uniform:
    """All times alike."""

    def __call__(
        self, count: int, generator: torch.Generator | None = None, /
    ) -> Float[Tensor, " count"]:
        """Draw `count` times."""
        return _rand(count, generator)

    def density(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """1 in [0, 1]."""
        return _inside(t, torch.ones_like(t))


@dataclass(frozen=True)
class UShaped:
    """Both ends more often than the middle, symmetrically.

    Args:
        a: steepness, positive; at 4 the ends are drawn 3.8 times as often as the middle.

    Example:
        >>> law = UShaped(4.0)
        >>> [round(float(p), 2) for p in law.density(torch.tensor([0.0, 0.5, 1.0]))]
        [2.07, 0.55, 2.07]
    """

    a: float = 4.0

    def __post_init__(self) -> None:
        _positive("a", self.a)

    def __call__(
        self, count: int, generator: torch.Generator | None = None, /
    ) -> Float[Tensor, " count"]:
        """Draw `count` times."""
        side = 2 * _rand(count, generator) - 1  # its sign chooses the end, its size the distance
        distance = torch.log1p(side.abs() * math.expm1(self.a)) / self.a
        return torch.where(side < 0, distance, 1 - distance)

    def density(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """a / (2 (e^a - 1)) (e^(a t) + e^(a (1 - t)))."""
        height = self.a / (2 * math.expm1(self.a))
        return _inside(t, height * (torch.exp(self.a * t) + torch.exp(self.a * (1 - t))))


@dataclass(frozen=True)
class LogitNormal:
    """sigmoid(mean + deviation n), n standard normal.

    Args:
        mean: of the logit; positive is later.
        deviation: of the logit, positive.
    """

    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self) -> None:
        _positive("deviation", self.deviation)

    def __call__(
        self, count: int, generator: torch.Generator | None = None, /
    ) -> Float[Tensor, " count"]:
        """Draw `count` times."""
        return torch.sigmoid(self.mean + self.deviation * _randn(count, generator))

    def density(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Of a normal logit, times its derivative 1 / (t (1 - t))."""
        z = (torch.logit(t) - self.mean) / self.deviation
        normal = torch.exp(-0.5 * z**2) / (self.deviation * math.sqrt(2 * math.pi))
        return torch.where((t > 0) & (t < 1), normal / (t * (1 - t)), 0.0)


@dataclass(frozen=True)
class Exponential:
    """One end more often than the other.

    Args:
        a: steepness, positive.
        end: the favoured end: source (t = 0) or target (t = 1).
    """

    a: float = 4.0
    end: Literal["source", "target"] = "source"

    def __post_init__(self) -> None:
        _positive("a", self.a)
        choose("end", self.end, ["source", "target"])

    def __call__(
        self, count: int, generator: torch.Generator | None = None, /
    ) -> Float[Tensor, " count"]:
        """Draw `count` times."""
        distance = torch.log1p(_rand(count, generator) * math.expm1(self.a)) / self.a
        return distance if self.end == "target" else 1 - distance

    def density(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """a e^(a u) / (e^a - 1), u the distance from the less favoured end."""
        u = t if self.end == "target" else 1 - t
        return _inside(t, self.a / math.expm1(self.a) * torch.exp(self.a * u))


@dataclass(frozen=True)
class EDMLogNormal:
    """The straight path's times of log-normal noise levels: t = 1 / (1 + sigma).

    Args:
        mean: of ln sigma.
        deviation: of ln sigma, positive.
    """

    mean: float = -1.2
    deviation: float = 1.2

    def __post_init__(self) -> None:
        _positive("deviation", self.deviation)

    def __call__(
        self, count: int, generator: torch.Generator | None = None, /
    ) -> Float[Tensor, " count"]:
        """Draw `count` times."""
        return torch.sigmoid(-(self.mean + self.deviation * _randn(count, generator)))

    def density(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """ln sigma is the logit of 1 - t: a logit-normal law of mean -m."""
        return LogitNormal(-self.mean, self.deviation).density(t)


@dataclass(frozen=True)
class EndpointMass:
    """Another law, with a share of the draws exactly at the source.

    A flow trained so is good in one step without losing its others, which training at t = 0 alone
    destroys.

    Args:
        base: the law of the other draws.
        mass: share at t = 0, in [0, 1].
    """

    base: TimeDistribution
    mass: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.mass <= 1:
            raise UserError(f"mass must be in [0, 1], got {self.mass}")

    def __call__(
        self, count: int, generator: torch.Generator | None = None, /
    ) -> Float[Tensor, " count"]:
        """Draw `count` times."""
        t = self.base(count, generator)
        return torch.where(_rand(count, generator) < self.mass, 0.0, t)

    def density(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Of the continuous part, which integrates to 1 - mass.

        Raises:
            UserError: if the other draws have no density.
        """
        if not isinstance(self.base, HasDensity):
            raise UserError(f"{type(self.base).__name__} has no density")
        return (1 - self.mass) * self.base.density(t)


@dataclass(frozen=True)
class Discrete:
    """The starts of k equal steps, alike: 0, 1/k, ..., (k - 1)/k. It has no density.

    Args:
        k: at least 1; 1 is the source alone, which is what one-step distillation trains.
    """

    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k must be at least 1, got {self.k}")

    def __call__(
        self, count: int, generator: torch.Generator | None = None, /
    ) -> Float[Tensor, " count"]:
        """Draw `count` times."""
        return torch.floor(_rand(count, generator) * self.k) / self.k


uniform = Uniform()
u_shaped = UShaped()
logit_normal = LogitNormal()
exponential = Exponential()
edm_lognormal = EDMLogNormal()

TIMES: dict[str, TimeDistribution] = {
    "uniform": uniform,
    "u_shaped": u_shaped,
    "logit_normal": logit_normal,
    "exponential": exponential,
    "edm_lognormal": edm_lognormal,
    "source_mass": EndpointMass(u_shaped, 0.3),
}
