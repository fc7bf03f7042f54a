"""Measurements of a flow: its geometry, and its distance from the data in a few steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rectified import flow
from rectified.flow import Field
from rectified.flow.solvers import SOLVERS
from rectified.jobs.flow.plan import FlowPlan
from rectified.jobs.flow.recipes import Stage
from rectified.jobs.flow.trial import Trial

Row = dict[str, Any]

GEOMETRY = 1024  # samples whose trajectories are measured
SHOWN_PATHS, SHOWN_IMAGES, PATH_STEPS = 150, 10, 32


def measure(plan: FlowPlan, trial: Trial, stage: Stage, field: Field) -> tuple[list[Row], Row]:
    """Rows and notes of one flow."""
    bent, gap = _geometry(plan, trial, field)
    geometry = {
        "straightness": bent.total,
        "transport_cost": bent.total / bent.relative if bent.relative else math.nan,
        "first_order_gap": gap,
    }
    notes = {
        "straightness_relative": bent.relative,
        "first_order_gap": gap,
        "has_diverged": not math.isfinite(bent.total),
        "terminal_gain": flow.terminal_gain(plan.path, plan.predicts),
        "floor": trial.distance.floor,
        "protocol": trial.distance.protocol,
        **_costs(trial, stage),
    }
    return list(_rows(plan, trial, stage, field, geometry)), notes


def _geometry(plan: FlowPlan, trial: Trial, field: Field) -> tuple[flow.Straightness, float]:
    """The straightness of a flow, and its first-order gap."""
    few, labels = trial.held_out(trial.samples)[:GEOMETRY], _labels(trial)
    given = field if labels is None else field.given(labels[:GEOMETRY], plan.config.guidance)
    bent = flow.straightness(given, plan.path.start(few), step=plan.step)
    return bent, flow.first_order_gap(given, few)


def _labels(trial: Trial) -> Tensor | None:
    return trial.labels(trial.samples, seed=trial.seed)


def _rows(plan: FlowPlan, trial: Trial, stage: Stage, field: Field, geometry: Row) -> Iterator[Row]:
    x0, labels = trial.held_out(trial.samples), _labels(trial)
    gap, is_reflow = geometry["first_order_gap"], stage.start is not None
    for steps in plan.steps:
        for solver in plan.solvers.at(steps, gap=gap, is_reflow=is_reflow):
            samples, evaluations = flow.generate(
                field,
                x0,
                steps=steps,
                step=SOLVERS[solver],
                labels=labels,
                guidance=plan.config.guidance,
            )
            yield {
                "seed": trial.seed,
                "round": stage.round,
                "recipe": stage.recipe.name,
                "solver": solver,
                "steps": steps,
                "distance": trial.distance.measure(samples),
                "distance_name": trial.distance.name,
                **geometry,
                "evaluations": evaluations,
            }


def _costs(trial: Trial, stage: Stage) -> Row:
    """Transport costs between source and data, which need no flow; of points alone."""
    if trial.transfer.target.is_image or stage.start is not None:
        return {}
    reference = trial.transfer.reference[: trial.samples]
    ends = trial.held_out(trial.samples)[: len(reference)].cpu()
    return {
        "optimal_cost": flow.optimal_cost(ends, reference),
        "independent_cost": flow.transport_cost(ends, reference),
    }


def drawn(plan: FlowPlan, trial: Trial, field: Field) -> Tensor:
    """Draw for the report: paths of points, or the same images in every number of steps.

    Returns:
        (times, points, 2) or (steps + 1, images, ...), the source first; empty where there is no
        plane to draw in.
    """
    target = trial.transfer.target
    if target.is_image:
        return _images(plan, trial, field)
    if target.shape != (2,):
        return torch.empty(0)
    x0 = trial.held_out(SHOWN_PATHS)
    times = flow.uniform_grid(PATH_STEPS).to(x0)
    with torch.no_grad():
        states = flow.integrate(field, plan.path.start(x0), times, plan.step)
    return torch.stack(list(states)).cpu()


def _images(plan: FlowPlan, trial: Trial, field: Field) -> Tensor:
    x0, labels = trial.held_out(SHOWN_IMAGES), trial.labels(SHOWN_IMAGES, seed=trial.seed)
    guidance = plan.config.guidance
    made = [
        flow.generate(field, x0, steps=n, step=plan.step, labels=labels, guidance=guidance)[0]
        for n in plan.steps
    ]
    return torch.stack([x0, *made]).cpu()
