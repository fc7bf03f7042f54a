"""Solvers: from the source to the target along a velocity, in steps.

    path = integrate(velocity, x0, uniform_grid(8), step=heun)
    path[-1], path.evaluations

`integrate` is generic in its state: it only passes it on. A stepper knows how to move a state; the
ones here move tensors. A velocity is any callable (state, t); `natural_euler`, `renoise`,
`DDIM` and `exponential2` step in end points, (x0, x1) at (state, t), and want a
`rectified.flow.Field`.

    euler           x + dt v                                              1 evaluation per step
    midpoint        v at the middle                                       2
    heun            mean of v at both ends; the last step is Euler's      2 (2 N - 1 in all)
    rk4             the classical fourth order                            4
    natural_euler   a(s) x1 + b(s) x0: exact where end points do not      1
                    change; DDIM; Euler's method on the straight path
    renoise         a(s) x1 + b(s) x0(0) with the *initial* x0            1
    exponential2    second order in ln(a / b) (DPM-Solver++ 2M)           1
    DDIM(eta)       natural_euler with fresh noise                        1
    adaptive        Dormand-Prince, to a tolerance (torchdiffeq)          as needed

`renoise` is rf++'s update. It helps a rectified flow in 2 to 8 steps, and is not a consistent
solver: on a flow whose end points still change along the way it diverges as steps grow.

References:
    Liu et al., 2022, arXiv 2209.03003; Lee, Lin, Fanti, 2024, arXiv 2405.20320 (renoise); Karras
    et al., 2022, arXiv 2206.00364 (heun); Song, Meng, Ermon, 2021, arXiv 2010.02502 (DDIM); Lu et
    al., 2022, arXiv 2211.01095 (DPM-Solver++).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError, choose
from rectified.flow.grids import check_grid
from rectified.flow.paths import TINY, AffinePath, Points
from rectified.flow.predictions import Endpoints

State = TypeVar("State")
Velocity = Callable[[Any, Tensor], Any]
Stepper = Callable[[Velocity, Any, Tensor, Tensor], Any]


@runtime_checkable
class StepsTogether(Protocol):
    """A stepper whose steps know of each other: it makes one for each integration."""

    def begin(self, state: Any, times: Tensor, /) -> Stepper: ...


@runtime_checkable
class HasEndpoints(Protocol):
    """Knows both end points of the path that it is on."""

    @property
    def path(self) -> AffinePath: ...

    def endpoints(self, x: Tensor, t: Tensor, /) -> Endpoints: ...


class Trajectory(list[State]):
    """The states at every time of a grid, first to last.

    Attributes:
        evaluations: how often the velocity was asked (the number of function evaluations, NFE).
    """

    def __init__(self, states: Iterable[State], evaluations: int) -> None:
        super().__init__(states)
        self.evaluations = evaluations


@dataclass
class _Counted:
    """A velocity, and how often it was asked."""

    inner: Any
    count: int = 0

    def __call__(self, state: Any, t: Tensor) -> Any:
        self.count += 1
        return self.inner(state, t)

    def endpoints(self, x: Tensor, t: Tensor) -> Endpoints:
        self.count += 1
        return self.inner.endpoints(x, t)

    @property
    def path(self) -> AffinePath:
        return self.inner.path


def euler(velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
    """x + (s - t) v(x, t): first order."""
    return x + (s - t) * velocity(x, t)


def midpoint(velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
    """A whole step with the velocity in its middle: second order."""
    half = 0.5 * (s - t)
    return x + (s - t) * velocity(x + half * velocity(x, t), t + half)


def rk4(velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
    """The classical Runge-Kutta step: fourth order."""
    h = s - t
    v1 = velocity(x, t)
    v2 = velocity(x + 0.5 * h * v1, t + 0.5 * h)
    v3 = velocity(x + 0.5 * h * v2, t + 0.5 * h)
    v4 = velocity(x + h * v3, s)
    return x + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)


def natural_euler(velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
    """Both end points as predicted at t, mixed as the path mixes them at s (DDIM).

    Raises:
        UserError: for a velocity that does not know its end points.
    """
    known = _with_endpoints(velocity, "natural_euler")
    return mix(known.path, known.endpoints(x, t), s)


def mix(path: AffinePath, ends: Endpoints, s: Tensor) -> Points:
    """The point between end points at time s (0-d)."""
    c = path.coefficients(s.to(ends.x1.dtype))
    return c.a * ends.x1 + c.b * ends.x0


def _with_endpoints(velocity: Any, name: str) -> HasEndpoints:
    inner = velocity.inner if isinstance(velocity, _Counted) else velocity
    if not isinstance(inner, HasEndpoints):
        raise UserError(
            f"{name} steps between end points: give it a rectified.flow.Field, got "
            f"{type(inner).__name__}"
        )
    return cast(HasEndpoints, velocity)


@dataclass(frozen=True)
class Heun:
    """Heun's method: second order in all, since one step of Euler's costs one local error.

    Args:
        last: how the last step is made. At the end of a diffusion path the velocity is not
            defined, so Karras et al. make it with `euler`; `heun` makes all steps alike.
    """

    last: Literal["euler", "heun"] = "euler"

    def __post_init__(self) -> None:
        choose("last", self.last, ["euler", "heun"])

    def begin(self, state: Any, times: Tensor) -> Stepper:
        """The stepper for one integration: it knows which step is the last."""
        return _CountingSteps(len(times) - 1) if self.last == "euler" else self

    def __call__(self, velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
        """One step, with the mean of the velocities at both its ends."""
        v = velocity(x, t)
        return x + (s - t) * 0.5 * (v + velocity(x + (s - t) * v, s))


@dataclass
class _CountingSteps:
    left: int

    def __call__(self, velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
        self.left -= 1
        step: Stepper = Heun("heun") if self.left else euler
        return step(velocity, x, t, s)


@dataclass(frozen=True)
class Renoise:
    """rf++'s update: the predicted target, mixed with the sample's own first source point."""

    def begin(self, state: Points, times: Tensor) -> Stepper:
        """The stepper for samples that begin at `state`."""

        def step(velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
            known = _with_endpoints(velocity, "renoise")
            ends = Endpoints(_unscaled(known.path, state), known.endpoints(x, t).x1)
            return mix(known.path, ends, s)

        return step

    def __call__(self, velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
        """One step alone, from t = 0: x is the source point."""
        return self.begin(x, torch.stack([t, s]))(velocity, x, t, s)


def _unscaled(path: AffinePath, start: Tensor) -> Tensor:
    """The source point of a sample's first state."""
    return start / path.start(torch.ones_like(start[:1]))


@dataclass(frozen=True)
class Exponential2:
    """DPM-Solver++ (2M): the target prediction extrapolated in lambda = ln(a / b)."""

    def begin(self, state: Points, times: Tensor) -> Stepper:
        """The stepper for one integration: it remembers the last prediction."""
        return _Multistep()

    def __call__(self, velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
        """One step alone is of first order: `natural_euler`."""
        return natural_euler(velocity, x, t, s)


@dataclass
class _Multistep:
    before: tuple[Tensor, Tensor] | None = None  # lambda and target prediction of the last step

    def __call__(self, velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
        known = _with_endpoints(velocity, "exponential2")
        now, then = (known.path.coefficients(time.to(x.dtype)) for time in (t, s))
        ends = known.endpoints(x, t)
        lam = torch.log(now.a.clamp(min=TINY)) - torch.log(now.b.clamp(min=TINY))
        x1 = ends.x1
        if self.before is not None:
            lam_before, x1_before = self.before
            step = torch.log(then.a.clamp(min=TINY)) - torch.log(then.b.clamp(min=TINY)) - lam
            ratio = (lam - lam_before) / step
            # a step from or to an end spans infinitely many octaves: it is of first order
            is_inner = torch.stack([now.a, now.b, then.a, then.b]).amin() > TINY
            weight = torch.where(is_inner, 0.5 / ratio, 0.0)
            x1 = x1 + weight * (x1 - x1_before)
        self.before = (lam, ends.x1)
        if_first = mix(known.path, ends, s)
        return if_first + (then.a - now.a * then.b / now.b.clamp(min=TINY)) * (x1 - ends.x1)


@dataclass(frozen=True, eq=False)
class DDIM:
    """`natural_euler` with noise: eta = 0 adds none, eta = 1 is DDPM's ancestral sampling.

    Keeps the marginals where the source is standard normal and independent of the target.

    Args:
        eta: share of the noise, in [0, 1].
        generator: of the noise; PyTorch's global one by default.
    """

    eta: float = 1.0
    generator: torch.Generator | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must be in [0, 1], got {self.eta}")

    def __call__(self, velocity: Velocity, x: Points, t: Tensor, s: Tensor) -> Points:
        """One step."""
        known = _with_endpoints(velocity, "ddim")
        now, then = (known.path.coefficients(time.to(x.dtype)) for time in (t, s))
        ends = known.endpoints(x, t)
        fresh = (now.b**2 - (now.a / then.a.clamp(min=TINY)) ** 2 * then.b**2).clamp(min=0)
        sigma = self.eta * then.b / now.b.clamp(min=TINY) * torch.sqrt(fresh)
        kept = torch.sqrt((then.b**2 - sigma**2).clamp(min=0))
        noise = torch.randn(
            x.shape,
            generator=self.generator,
            dtype=x.dtype,
            device=self.generator.device if self.generator else x.device,
        )
        return then.a * ends.x1 + kept * ends.x0 + sigma * noise.to(x.device)


heun = Heun()
renoise = Renoise()
exponential2 = Exponential2()

SOLVERS: dict[str, Stepper] = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "rk4": rk4,
    "natural_euler": natural_euler,
    "exponential2": exponential2,
    "renoise": renoise,
}


def integrate(
    velocity: Callable[[State, Tensor], Any],
    state: State,
    times: Float[Tensor, " stops"],
    step: Stepper = euler,
) -> Trajectory[State]:
    """Follow a velocity through the times of a grid.

    Args:
        velocity: (state, t) to a velocity; t is a 0-d tensor.
        state: at the first time: points (batch, ...), or whatever `step` moves.
        times: two or more, rising or (backward) falling.
        step: (velocity, state, t, s) to the state at s, or `StepsTogether`.

    Returns:
        The state at every time, and the number of evaluations.

    Raises:
        UserError: if the times are no grid.

    Example:
        >>> from rectified.flow.grids import uniform_grid
        >>> start = torch.ones(1, 1, dtype=torch.float64)
        >>> path = integrate(lambda x, t: x, start, uniform_grid(100), rk4)
        >>> round(float(path[-1]), 6), path.evaluations
        (2.718282, 400)
    """
    check_grid(times)
    counted = _Counted(velocity)
    make = step.begin(state, times) if isinstance(step, StepsTogether) else step
    states = [state]
    for t, s in pairwise(times.unbind()):
        states.append(make(counted, states[-1], t, s))
    return Trajectory(states, counted.count)


def adaptive(
    velocity: Velocity,
    state: Points,
    times: Float[Tensor, " stops"],
    *,
    tolerance: float = 1e-5,
    method: str = "dopri5",
) -> Trajectory[Points]:
    """Follow a velocity with steps as small as a tolerance asks, one size for the whole batch.

    Args:
        velocity: (points, t) to their velocity.
        state: points at the first time.
        times: where the states are wanted.
        tolerance: absolute and relative.
        method: torchdiffeq's name of the solver.

    Raises:
        UserError: if torchdiffeq is not there, or the tolerance is not positive.
    """
    if not tolerance > 0:
        raise UserError(f"tolerance must be positive, got {tolerance}")
    check_grid(times)
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise UserError(
            "adaptive solvers need torchdiffeq: pip install 'rectified[adaptive]'"
        ) from error
    counted = _Counted(velocity)
    with torch.no_grad():
        states = odeint(
            lambda t, x: counted(x, t.to(x.dtype)),
            state,
            times.to(state),
            rtol=tolerance,
            atol=tolerance,
            method=method,
        )
    return Trajectory(states.unbind(), counted.count)
