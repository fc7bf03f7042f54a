"""Measures of the teacher and its students, on the same noise, against the teacher's samples.

There is no data to compare with. The distance is the mean squared difference from what the teacher
makes of held-out noise and prompts in many steps, in units of their mean square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rectified import flow
from rectified.flow import Field, pipelines
from rectified.flow.pipelines import Budget
from rectified.jobs.pipeline.settings import TEACHER, PipelinePlan
from rectified.networks import evaluating

Row = dict[str, Any]

GEOMETRY_STEPS = 100  # of the grid on which bends are measured
HELD_OUT = 900_000_000  # seed of noise that no pair begins at
_SHOWN, _SHOWN_SIDE = 6, 48  # pictures in the report, and their side in pixels at most


@dataclass(frozen=True, eq=False)
class Comparison:
    """Held-out noise, and what the teacher makes of it.

    Attributes:
        plan: of the study.
        budget: examples at a time.
    """

    plan: PipelinePlan
    budget: Budget

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor | None]:
        """Noise that no pair begins at, and prompts for it."""
        count, teacher = self.plan.config.samples, self.plan.teacher
        x0 = flow.noise_like((count, *teacher.shape), HELD_OUT).to(teacher.device)
        if not teacher.prompts:
            return x0, None
        return x0, torch.arange(count, device=teacher.device) % len(teacher.prompts)

    def solved(self, steps: int) -> Tensor:
        """The teacher's samples of the held-out noise, by the solver that makes pairs."""
        (x0, labels), teacher = self.held_out, self.plan.teacher

        def part(rows: slice) -> Tensor:
            return pipelines.solve(
                teacher.field,
                teacher.schedule,
                x0[rows],
                steps=steps,
                labels=None if labels is None else labels[rows],
                guidance=self.plan.config.pair_guidance,
            )

        return self.budget.over(len(x0), part)

    @cached_property
    def reference(self) -> Tensor:
        """The teacher's samples in many steps."""
        return self.solved(self.plan.config.pair_steps)

    @cached_property
    def floor(self) -> float:
        """The teacher's distance from itself in twice as many steps: the solver's own error."""
        return self.distance(self.solved(2 * self.plan.config.pair_steps))

    def distance(self, samples: Tensor) -> float:
        """Mean squared difference from the teacher's samples, in units of their mean square."""
        apart = (samples - self.reference).double().square().mean()
        return float(apart / self.reference.double().square().mean())

    def pictures(self, samples: Tensor) -> Tensor:
        """Pictures in [-1, 1] of a few samples, small enough for a page."""
        pipeline = self.plan.teacher.pipeline
        decoded = self.budget.over(
            min(len(samples), _SHOWN), lambda rows: pipelines.decode(pipeline, samples[rows]).cpu()
        )
        scale = _SHOWN_SIDE / max(decoded.shape[-2:])
        if scale < 1:
            decoded = F.interpolate(decoded, scale_factor=scale, mode="area")
        return decoded.clamp(-1, 1)


@dataclass(frozen=True, eq=False)
class Arm:
    """A teacher or a student that was measured.

    Attributes:
        rows: distance by steps.
        note: gap, floor, protocol and more.
        shown: pictures (steps, images, ...), of the first seed.
    """

    rows: list[Row]
    note: Row
    shown: Tensor | None


def measure(comparison: Comparison, seed: int, recipe: str, field: Field) -> Arm:
    """Geometry, and distance at each number of steps, of a teacher or student."""
    plan, budget = comparison.plan, comparison.budget
    x0, labels = comparison.held_out
    guidance = plan.config.pair_guidance if recipe == TEACHER else plan.config.guidance

    def given(rows: slice) -> Field:
        return field if labels is None else field.given(labels[rows], guidance)

    with evaluating(field.network):
        bent, gap = budget.run(_bends(given, x0))
        samples = {
            steps: budget.over(len(x0), _sampled(given, x0, steps)) for steps in plan.config.steps
        }
    note = {
        "straightness_relative": bent.relative,
        "first_order_gap": gap,
        "floor": comparison.floor,
        "terminal_gain": flow.terminal_gain(field.path, field.predicts),
    }
    per_step = 2 if labels is not None and guidance != 1 else 1  # evaluations
    rows = [
        _row(seed, recipe, steps, comparison.distance(made), bent, gap, steps * per_step)
        for steps, made in samples.items()
    ]
    is_first = seed == plan.seeds[0]
    shown = torch.stack(list(map(comparison.pictures, samples.values()))) if is_first else None
    return Arm(rows, note, shown)


def _row(
    seed: int,
    recipe: str,
    steps: int,
    distance: float,
    bent: flow.Straightness,
    gap: float,
    evaluations: int,
) -> Row:
    return {
        "seed": seed,
        "round": 1 if recipe == TEACHER else 2,
        "recipe": recipe,
        "solver": "natural_euler",
        "steps": steps,
        "distance": distance,
        "distance_name": "teacher",
        "straightness": bent.total,
        "transport_cost": bent.total / bent.relative if bent.relative else None,
        "first_order_gap": gap,
        "evaluations": evaluations,
    }


def _bends(
    given: Callable[[slice], Field], x0: Tensor
) -> Callable[[int], tuple[flow.Straightness, float]]:
    """Straightness and first-order gap, on as many samples as there is room for."""

    def measured(size: int) -> tuple[flow.Straightness, float]:
        own, few, step = given(slice(0, size)), x0[:size], flow.natural_euler
        bent = flow.straightness(own, few, steps=GEOMETRY_STEPS, step=step)
        return bent, flow.first_order_gap(own, few, steps=GEOMETRY_STEPS)

    return measured


def _sampled(given: Callable[[slice], Field], x0: Tensor, steps: int) -> Callable[[slice], Tensor]:
    def part(rows: slice) -> Tensor:
        return flow.generate(given(rows), x0[rows], steps=steps, step=flow.natural_euler)[0]

    return part
