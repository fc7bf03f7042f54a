"""Affine paths: how a source point x0 becomes a target point x1.

    x_t = a(t) x1 + b(t) x0,        t = 0 source (noise), t = 1 target (data)

A path is its two coefficients. What is asked of it: `a` rises, `b` falls, and the Wronskian
W = a' b - a b' is positive, so that x_t and the velocity determine both end points. The ratio
rho = a / b orders the points of any two paths (Lipman et al., 2023; Albergo et al., 2023):

    name        a(t)                      b(t)              b(0) / a(0)
    straight    t                         1 - t             infinite
    vp_cosine   sin(pi t / 2)             cos(pi t / 2)     infinite
    vp_linear   exp(-s^2 (B - A)/4 - s A/2), s = 1 - t
                                          sqrt(1 - a^2)     152        (A = 0.1, B = 20)
    sub_vp      the same                  1 - a^2           152
    edm         1                         sigma(t)          sigma_max
    ddpm        sqrt(abar_k)              sqrt(1 - abar_k)  14.6 (Stable Diffusion's schedule)

b(0) / a(0), the `terminal_gain`, is what an error of a noise prediction is multiplied by in the
first step. It is infinite where a(0) = 0: there noise cannot be predicted usefully at all.

b'(1) of the VP paths is infinite; derivatives are evaluated no closer to the ends than `EDGE`.

References:
    Liu, Gong, Liu, Flow straight and fast, 2022, arXiv 2209.03003; Song et al., Score-based
    generative modeling through SDEs, 2021, arXiv 2011.13456; Karras et al., Elucidating the design
    space of diffusion-based generative models, 2022, arXiv 2206.00364.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError

EDGE = 1e-5  # how near to an end of time a derivative is still asked for, where it may be infinite
TINY = 1e-5  # the smallest coefficient that is divided by, so that both ends stay finite

Points = Float[Tensor, "batch ..."]
Times = Float[Tensor, " batch"] | Float[Tensor, ""]


@runtime_checkable
class Path(Protocol):
    """From a pair and a time to the point between them, and its velocity."""

    def __call__(self, x0: Tensor, x1: Tensor, t: Tensor, /) -> tuple[Tensor, Tensor]: ...


class Coefficients(NamedTuple):
    """a(t), b(t) and their derivatives, each shaped as t."""

    a: Tensor
    b: Tensor
    da: Tensor
    db: Tensor

    @property
    def wronskian(self) -> Tensor:
        """W = a' b - a b' > 0."""
        return self.da * self.b - self.a * self.db

    def like(self, x: Tensor) -> Coefficients:
        """The same, shaped to be multiplied with `x` (batch, ...)."""
        return Coefficients(*(along(value, x) for value in self))


def along(t: Tensor, x: Tensor) -> Tensor:
    """A value per batch entry, or one for all, shaped to be multiplied with `x` (batch, ...).

    Raises:
        UserError: if there is not one value for all, or one for each entry of the batch.

    Example:
        >>> along(torch.zeros(4), torch.zeros(4, 3, 2)).shape
        torch.Size([4, 1, 1])
    """
    if t.ndim == 0:
        return t
    if t.ndim != 1 or len(t) != len(x):
        raise UserError(
            f"times must be one number or one a point, got shape {tuple(t.shape)} for "
            f"{len(x)} points"
        )
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def _same_shape(x0: Tensor, x1: Tensor) -> None:
    if x0.shape != x1.shape:
        raise UserError(
            f"source and target points must have one shape, got {tuple(x0.shape)} and "
            f"{tuple(x1.shape)}"
        )


class AffinePath:
    """Base of the affine paths; a subclass gives `coefficients` and `time`."""

    def coefficients(self, t: Tensor, /) -> Coefficients:
        """a, b and their derivatives at times in [0, 1]; finite at both ends."""
        raise NotImplementedError

    def time(self, ratio: Tensor, /) -> Tensor:
        """The time at which a / b is `ratio`: in [0, 1] for ratios that the path passes."""
        raise NotImplementedError

    def __call__(self, x0: Points, x1: Points, t: Times, /) -> tuple[Points, Points]:
        """The point between x0 and x1 at time t, and its velocity a' x1 + b' x0.

        Args:
            x0: source points (batch, ...).
            x1: target points, of the same shape.
            t: in [0, 1], one per point or one for all.

        Raises:
            UserError: if the shapes do not pair.
        """
        _same_shape(x0, x1)
        c = self.coefficients(t).like(x1)
        return c.a * x1 + c.b * x0, c.da * x1 + c.db * x0

    @property
    def terminal_gain(self) -> float:
        """b(0) / a(0): how much a noise prediction's error grows in a first step."""
        c = self.coefficients(torch.zeros((), dtype=torch.float64))
        return float(c.b / c.a) if c.a > 0 else math.inf

    def start(self, x0: Points) -> Points:
        """The state at t = 0 of a sample with source point x0."""
        return x0

    @property
    def is_straight(self) -> bool:
        """Whether points move at constant velocity."""
        return False


@dataclass(frozen=True)
class Straight(AffinePath):
    """x_t = t x1 + (1 - t) x0: rectified flow's, the only path of constant velocity.

    Example:
        >>> x, v = Straight()(torch.tensor([[0.0]]), torch.tensor([[2.0]]), torch.tensor([0.25]))
        >>> x.item(), v.item()
        (0.5, 2.0)
    """

    def __call__(self, x0: Points, x1: Points, t: Times, /) -> tuple[Points, Points]:
        _same_shape(x0, x1)
        v = x1 - x0
        return torch.addcmul(x0, along(t, x1), v), v

    def coefficients(self, t: Tensor, /) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)

    def time(self, ratio: Tensor, /) -> Tensor:
        return torch.where(torch.isinf(ratio), 1.0, ratio / (1 + ratio))

    @property
    def is_straight(self) -> bool:
        return True


@dataclass(frozen=True)
class VPCosine(AffinePath):
    """A quarter circle at constant speed: a = sin(pi t / 2), b = cos(pi t / 2)."""

    def coefficients(self, t: Tensor, /) -> Coefficients:
        # cos(pi t / 2) as a sine, which is 0 at t = 1 and not a rounding error below it
        a, b = torch.sin(0.5 * math.pi * t), torch.sin(0.5 * math.pi * (1 - t))
        return Coefficients(a, b, 0.5 * math.pi * b, -0.5 * math.pi * a)

    def time(self, ratio: Tensor, /) -> Tensor:
        return torch.atan(ratio) / (0.5 * math.pi)


@dataclass(frozen=True)
class VPLinear(AffinePath):
    """The variance-preserving diffusion whose beta is linear in time (DDPM's limit).

    Args:
        beta_min: beta at the data.
        beta_max: beta at the noise.

    Example:
        >>> round(VPLinear().terminal_gain)
        152
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise UserError(
                f"betas must be 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}"
            )

    def _log_a(self, s: Tensor) -> Tensor:
        return -0.25 * s**2 * (self.beta_max - self.beta_min) - 0.5 * s * self.beta_min

    def _rate(self, s: Tensor) -> Tensor:
        """d log a / dt = beta(s) / 2."""
        return 0.5 * (self.beta_min + s * (self.beta_max - self.beta_min))

    def _b(self, s: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_a(s)))

    def coefficients(self, t: Tensor, /) -> Coefficients:
        s = 1 - t
        a = torch.exp(self._log_a(s))
        da = a * self._rate(s)
        inner = s.clamp(min=EDGE)
        db = -torch.exp(2 * self._log_a(inner)) * self._rate(inner) / self._b(inner)
        return Coefficients(a, self._b(s), da, db)

    def _time_of_log_a(self, log_a: Tensor) -> Tensor:
        # a smaller a than the path begins with is its begin: infinity over infinity otherwise
        first = -0.25 * (self.beta_max + self.beta_min)
        spread, twice = self.beta_max - self.beta_min, -2 * log_a.clamp(min=first)
        if spread == 0:
            return 1 - twice / self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * spread * twice)
        return 1 - 2 * twice / (self.beta_min + root)  # free of cancellation near the data

    def time(self, ratio: Tensor, /) -> Tensor:
        return self._time_of_log_a(-0.5 * torch.log1p(ratio**-2))


@dataclass(frozen=True)
class SubVP(VPLinear):
    """The sub-variance-preserving diffusion: a as `VPLinear`, b = 1 - a^2."""

    def coefficients(self, t: Tensor, /) -> Coefficients:
        s = 1 - t
        a = torch.exp(self._log_a(s))
        da = a * self._rate(s)
        return Coefficients(a, -torch.expm1(2 * self._log_a(s)), da, -2 * a * da)

    def time(self, ratio: Tensor, /) -> Tensor:
        # a / (1 - a^2) = rho: with 1/rho, so that rho = inf is a = 1
        inverse = 1 / ratio
        a = 2 / (inverse + torch.sqrt(inverse**2 + 4))
        return self._time_of_log_a(torch.log(a))


@dataclass(frozen=True)
class EDM(AffinePath):
    """Exploding variance with Karras et al.'s noise levels: a = 1, b = sigma(t).

    sigma(t) = (smax^(1/rho) + t (smin^(1/rho) - smax^(1/rho)))^rho

    Args:
        sigma_min: noise level at t = 1, in the data's unit.
        sigma_max: noise level at t = 0.
        rho: how much of the time goes to small noise.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf or self.rho <= 0:
            raise UserError(
                f"noise levels must be 0 < sigma_min < sigma_max and rho positive, got "
                f"{self.sigma_min}, {self.sigma_max} and {self.rho}"
            )

    def coefficients(self, t: Tensor, /) -> Coefficients:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        root = high + t * (low - high)
        one = torch.ones_like(t)
        slope = self.rho * root ** (self.rho - 1) * (low - high)
        return Coefficients(one, root**self.rho, torch.zeros_like(t), slope)

    def time(self, ratio: Tensor, /) -> Tensor:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (ratio ** (-1 / self.rho) - high) / (low - high)

    def start(self, x0: Points) -> Points:
        """Noise of the largest level."""
        return self.sigma_max * x0


class DDPM(AffinePath):
    """A schedule of discrete noise levels, as trained diffusion models have it.

    Level k of N stands at t = 1 - (k + 1) / N, so that k = N - 1 is t = 0; clean data is t = 1.
    Between levels the angle atan(b / a) is linear in time, which is exact at the levels, keeps
    a^2 + b^2 = 1 and is finite at the data.

    Args:
        betas: noise added at each level (N,), in (0, 1).

    Raises:
        UserError: if there are fewer than two, or one lies outside (0, 1).

    Example:
        >>> round(stable_diffusion().terminal_gain, 1)
        14.6
    """

    def __init__(self, betas: Float[Tensor, " levels"]) -> None:
        betas = betas.double()
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise UserError("betas must be two or more numbers in (0, 1)")
        self.betas = betas
        log_a = 0.5 * torch.log1p(-betas).cumsum(0)
        angles = torch.atan2(torch.sqrt(-torch.expm1(2 * log_a)), torch.exp(log_a))
        self.angles = torch.cat([angles.flip(0), angles.new_zeros(1)])  # along t, falling to 0

    @property
    def levels(self) -> int:
        """The number of noise levels."""
        return len(self.betas)

    def level(self, t: Tensor, /) -> Tensor:
        """The (real) number of the level at time t: N (1 - t) - 1."""
        return self.levels * (1 - t) - 1

    def coefficients(self, t: Tensor, /) -> Coefficients:
        position = t.double() * self.levels
        left = position.floor().clamp(0, self.levels - 1).long()
        angles = self.angles.to(t.device)
        slope = angles[left + 1] - angles[left]
        angle = (angles[left] + (position - left) * slope).to(t.dtype)
        speed = (slope * self.levels).to(t.dtype)
        a, b = torch.cos(angle), torch.sin(angle)
        return Coefficients(a, b, -b * speed, a * speed)

    def time(self, ratio: Tensor, /) -> Tensor:
        rising = -self.angles.to(ratio.device)  # searchsorted wants rising numbers
        wanted = -torch.atan(1 / ratio.double())
        left = (torch.searchsorted(rising, wanted.contiguous(), right=True) - 1).clamp(
            0, self.levels - 1
        )
        share = (wanted - rising[left]) / (rising[left + 1] - rising[left])
        return ((left + share) / self.levels).to(ratio.dtype)


def linear_betas(
    levels: int = 1000, first: float = 1e-4, last: float = 0.02
) -> Float[Tensor, " levels"]:
    """Betas linear in the level: Ho et al.'s by default (arXiv 2006.11239)."""
    return torch.linspace(first, last, levels, dtype=torch.float64)


def scaled_linear_betas(
    levels: int = 1000, first: float = 0.00085, last: float = 0.012
) -> Float[Tensor, " levels"]:
    """Betas whose roots are linear in the level: Stable Diffusion's by default."""
    return torch.linspace(first**0.5, last**0.5, levels, dtype=torch.float64) ** 2


def stable_diffusion() -> DDPM:
    """Stable Diffusion's path: 1000 levels of scaled linear betas."""
    return DDPM(scaled_linear_betas())


straight = Straight()
vp_cosine = VPCosine()
vp_linear = VPLinear()
sub_vp = SubVP()
edm = EDM()

PATHS: dict[str, AffinePath] = {
    "straight": straight,
    "vp_cosine": vp_cosine,
    "vp_linear": vp_linear,
    "sub_vp": sub_vp,
    "edm": edm,
    "ddpm": DDPM(linear_betas()),
    "scaled_linear": stable_diffusion(),
}
