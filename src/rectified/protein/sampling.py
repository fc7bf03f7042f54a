"""From noise to backbones: steps on frames, and the sampler.

The network's prediction of the clean frames (x, q) gives each step. Translations move along the
straight line; rotations a share f of the arc to the prediction,

    x_t + (x - x_t) (t1 - t0) / (1 - t0)        q_t exp(f log(q_t* q))

    linear   f = (t1 - t0) / (1 - t0)           the way that training interpolates
    euler    f = 10 (t1 - t0)                   the reference's steps of dq/dt = 10 log(q_t* q)
    exact    f = 1 - exp(-10 (t1 - t0))         the exact solution of the same equation

With 10 steps or fewer, `euler` has f > 1: it jumps past the prediction and, at 5 steps, further
away at every step. `exact` cannot, has the same limit, and is the default.

`steps` counts evaluations of the network: steps - 1 on a uniform grid from 0.01 to 1, and a last
one whose prediction is the sample. The reference forgets to tell the network the time of that last
one, which keeps that of the step before; `euler` does the same, so that its outputs are the
reference's; `exact` and `linear` say 0.99, the last time that training has seen.

References: Yue, Wang and Xu, 2025, arXiv:2502.14637, section 3.3; Bose et al., "SE(3)-stochastic
flow matching for protein backbone generation", 2024, arXiv:2310.02391 (exponential schedule).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError, choose
from rectified.flow.solvers import integrate
from rectified.protein.frames import Frames
from rectified.protein.quaternion import slerp
from rectified.protein.se3_flow import FIRST_TIME, LAST_TIME, prior

RATE = 10.0  # of the exponential schedule of rotations

RotationStep = Literal["exact", "euler", "linear"]
Prediction = Callable[[Frames, Tensor], Frames]


class Denoiser:
    """The network as what a solver calls: frames and a time in, predicted clean frames out.

    It remembers its last prediction and shows it to the network (self-conditioning), so that one
    object serves one integration.

    Args:
        model: predicts clean frames.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.previous: Tensor | None = None

    def __call__(self, state: Frames, t: Tensor) -> Frames:
        times = t.to(state.translations).expand(len(state))
        clean: Frames = self.model(state, times, previous=self.previous)
        self.previous = clean.translations
        return clean


def rotation_share(
    t0: Float[Tensor, ""], t1: Float[Tensor, ""], rule: RotationStep
) -> Float[Tensor, ""]:
    """The share f of the arc that a step from `t0` to `t1` takes.

    Example:
        >>> t0, t1 = torch.tensor(0.0), torch.tensor(0.1)
        >>> [round(rotation_share(t0, t1, r).item(), 3) for r in ("linear", "euler", "exact")]
        [0.1, 1.0, 0.632]
    """
    if rule == "linear":
        return (t1 - t0) / (1 - t0)
    return RATE * (t1 - t0) if rule == "euler" else -torch.expm1(-RATE * (t1 - t0))


def frame_step(
    rule: RotationStep = "exact",
) -> Callable[[Prediction, Frames, Tensor, Tensor], Frames]:
    """A stepper for `rectified.flow.integrate` whose state are frames.

    Args:
        rule: of the rotations.

    Raises:
        UserError: if the rule is not known.
    """
    choose("rot_step", rule, ["exact", "euler", "linear"])

    def step(predict: Prediction, state: Frames, t0: Tensor, t1: Tensor) -> Frames:
        clean = predict(state, t0)
        share = rotation_share(t0, t1, rule).to(state.translations)
        way = (clean.translations - state.translations) / (1 - t0) * (t1 - t0)
        return Frames(
            state.translations + way.to(state.translations),
            slerp(share, state.quaternions, clean.quaternions),
        )

    return step


@dataclass(frozen=True)
class Samples:
    """Generated backbones.

    Attributes:
        noise: what they began from.
        frames: the samples, each chain centred.
        states: the way there, first the noise; empty where it was not asked for.
    """

    noise: Frames
    frames: Frames
    states: tuple[Frames, ...] = ()


@torch.no_grad()
def sample(
    model: nn.Module,
    count: int,
    length: int,
    *,
    steps: int = 50,
    rot_step: RotationStep = "exact",
    generator: torch.Generator | None = None,
    noise: Frames | None = None,
    keep_states: bool = False,
) -> Samples:
    """Generate backbones.

    Args:
        model: predicts clean frames; it is used in the mode that it is in.
        count: chains.
        length: residues of each.
        steps: evaluations of the network, at least 2.
        rot_step: how rotations move: exact, euler (the reference's) or linear.
        generator: of the noise, a CPU one.
        noise: to begin from; by default it is drawn.
        keep_states: whether the way is kept.

    Raises:
        UserError: for a count, length or number of steps that is too small.
    """
    for name, value, least in (("count", count, 1), ("length", length, 2), ("steps", steps, 2)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    device = next(model.parameters()).device
    if noise is None:
        noise = prior(count, length, generator=generator).to(device)
    step, predict = frame_step(rot_step), Denoiser(model)
    times = torch.linspace(FIRST_TIME, 1.0, steps, device=device)
    states: list[Any] = list(integrate(predict, noise, times, step))
    last = times[-2] if rot_step == "euler" else times.new_tensor(LAST_TIME)
    clean = predict(states[-1], last)
    kept = (*states, clean) if keep_states else ()
    return Samples(noise, clean.centred(), kept)
