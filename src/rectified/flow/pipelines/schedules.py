"""Schedulers of diffusers as a path and a prediction; and schedulers for a student.

diffusers counts noise levels: k = 0 the cleanest of N, k = N - 1 the noisiest. Here level k
stands at t = 1 - (k + 1) / N: noise is t = 0, and t = 1, clean data, one level below the lowest.

    diffusers                    here
    betas                        DDPM(betas)
    epsilon                      noise          x0
    v_prediction                 v_prediction   a x0 - b x1
    sample                       target         x1
    RectifiedFlowScheduler       the straight path, velocity

Equal steps of t are diffusers' `trailing` spacing; natural Euler on them is its `DDIMScheduler`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError, choose
from rectified.flow import predictions
from rectified.flow.paths import DDPM, AffinePath, linear_betas, straight
from rectified.flow.pipelines.library import needed
from rectified.flow.predictions import Prediction

PREDICTION_TYPES = {
    "epsilon": predictions.noise,
    "v_prediction": predictions.v_prediction,
    "sample": predictions.target,
}
_TYPE_OF = {prediction.name: name for name, prediction in PREDICTION_TYPES.items()}
_FLOW = "RectifiedFlowScheduler"

# what a beta of 1 (zero terminal signal) is taken for, so that a stays positive; diffusers' own
_LEAST_SIGNAL = 2.0**-24


@dataclass(frozen=True)
class Schedule:
    """A path with counted noise levels, and what a network on it predicts.

    Attributes:
        path: DDPM's, or the straight one.
        predicts: by the network.
        levels: N.
    """

    path: AffinePath
    predicts: Prediction
    levels: int

    def time(self, level: Tensor | float | int) -> Float[Tensor, "..."]:
        """The time of a level, 1 - (k + 1) / N.

        Example:
            >>> schedule = Schedule(straight, predictions.velocity, 1000)
            >>> float(schedule.time(999)), float(schedule.time(749))
            (0.0, 0.25)
        """
        return (1 - (torch.as_tensor(level, dtype=torch.float64) + 1) / self.levels).float()


def level(t: Float[Tensor, " batch"], levels: int) -> Float[Tensor, " batch"]:
    """The noise level that a network of diffusers gets at time t: N (1 - t) - 1, but at least 0.

    Times that stand for a whole level up to their rounding give that level exactly.

    Example:
        >>> level(torch.tensor([0.0, 0.25, 0.9, 1.0]), 1000)
        tensor([999., 749.,  99.,   0.])
    """
    exact = levels * (1 - t.double()) - 1
    whole = exact.round()
    # float32 times are off by up to 3e-8, which is 3e-5 of a level
    exact = torch.where((exact - whole).abs() < 1e-3, whole, exact)
    return exact.clamp(min=0).to(t.dtype)


def read_schedule(scheduler: Any) -> Schedule:
    """The path and prediction of a scheduler.

    Args:
        scheduler: any of diffusers' that has betas, or a `RectifiedFlowScheduler`.

    Raises:
        UserError: if it has none, or predicts something else.
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    if name == _FLOW:
        return Schedule(straight, predictions.velocity, config["num_train_timesteps"])
    betas = getattr(scheduler, "betas", None)
    if not isinstance(betas, Tensor) or betas.ndim != 1 or config.get("use_flow_sigmas"):
        raise UserError(
            f"the schedule of {name} cannot be read: it has no betas. Take a pipeline whose "
            "scheduler has them (DDPM, DDIM, PNDM, DPMSolverMultistep, Euler, ...)"
        )
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise UserError(
            f"the scheduler's prediction_type must be one of {', '.join(PREDICTION_TYPES)}, "
            f"got {kind!r}"
        )
    try:
        path = DDPM(betas.double().clamp(max=1 - _LEAST_SIGNAL))
    except UserError as error:
        raise UserError(f"the schedule of {name} cannot be read: {error}") from error
    return Schedule(path, PREDICTION_TYPES[kind], len(betas))


CHANGES = ("keep", "linear", "flow")
"""Ways for a student to treat its teacher's schedule."""


def changed(schedule: Schedule, change: str, predict: str = "keep") -> Schedule:
    """The student's schedule.

    Args:
        schedule: the teacher's.
        change: `keep`; `linear`, betas linear between the teacher's first and last, as the paper's
            code has it; or `flow`, the straight path with velocity prediction.
        predict: what the student predicts: `keep`, noise, v_prediction or target.

    Raises:
        UserError: for an unknown word, or a change that the schedule does not allow.

    Example:
        >>> from rectified.flow.paths import stable_diffusion
        >>> teacher = Schedule(stable_diffusion(), predictions.noise, 1000)
        >>> round(changed(teacher, "linear").path.terminal_gain, 1)
        25.1
    """
    choose("schedule", change, CHANGES)
    choose("prediction", predict, ["keep", *_TYPE_OF])
    if change == "flow" or not isinstance(schedule.path, DDPM):
        if predict != "keep":
            raise UserError(f"a flow predicts its velocity: leave out the prediction {predict!r}")
        if change == "linear":
            raise UserError("a flow has no betas to make linear: keep its schedule")
        return Schedule(straight, predictions.velocity, schedule.levels)
    path, predicts = schedule.path, schedule.predicts
    if change == "linear":
        first, last = float(path.betas[0]), float(path.betas[-1])
        path = DDPM(linear_betas(schedule.levels, first, last))
    if predict != "keep":
        predicts = PREDICTION_TYPES[_TYPE_OF[predict]]
    return Schedule(path, predicts, schedule.levels)


def few_step_scheduler(schedule: Schedule) -> Any:
    """A scheduler with which plain diffusers code samples a student in few steps.

    On a DDPM path that is DDIM as the reference code sets it: `trailing` spacing, so that the first
    step starts from the noisiest level; nothing clipped; the last step ends at the cleanest level,
    as Stable Diffusion's decoders are used to. On the straight path it is ours.
    """
    if not isinstance(schedule.path, DDPM):
        from rectified.flow.pipelines.scheduler import RectifiedFlowScheduler

        return RectifiedFlowScheduler(schedule.levels)
    return needed("diffusers").DDIMScheduler(
        **_betas(schedule.path),
        num_train_timesteps=schedule.levels,
        prediction_type=_TYPE_OF[schedule.predicts.name],
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,  # of no effect here; Stable Diffusion's pipeline warns without it
    )


def dpm_solver(schedule: Schedule) -> Any:
    """DPM-Solver++ (2M) in diffusers, from the noisiest level to clean data.

    Raises:
        UserError: where there are no betas.
    """
    if not isinstance(schedule.path, DDPM):
        raise UserError("DPM-Solver needs a schedule with betas")
    return needed("diffusers").DPMSolverMultistepScheduler(
        **_betas(schedule.path),
        num_train_timesteps=schedule.levels,
        prediction_type=_TYPE_OF[schedule.predicts.name],
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
    )


def _betas(path: DDPM) -> dict[str, Any]:
    """The betas by a name where diffusers has one for them, else as a list."""
    first, last = float(path.betas[0]), float(path.betas[-1])
    for name, power in (("linear", 1.0), ("scaled_linear", 0.5)):
        ends = torch.linspace(first**power, last**power, path.levels, dtype=torch.float64)
        if torch.allclose(ends ** (1 / power), path.betas, rtol=1e-4):
            return {"beta_schedule": name, "beta_start": first, "beta_end": last}
    return {"trained_betas": path.betas.tolist(), "beta_start": first, "beta_end": last}
