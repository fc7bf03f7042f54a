"""The work of `rectified flow` and `rectified diffusion`: seed by seed, network by network.

Every finished network is kept with its rows; an unfinished training is kept by `fit`, unfinished
pairs by their store. So a run that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rectified.flow import Field
from rectified.jobs.flow.comparisons import verdicts
from rectified.jobs.flow.measuring import Row, drawn, measure
from rectified.jobs.flow.networks import as_field, build_network, new_network, write_networks
from rectified.jobs.flow.plan import FlowPlan
from rectified.jobs.flow.recipes import Stage
from rectified.jobs.flow.report import named, summarise
from rectified.jobs.flow.samples import write_samples
from rectified.jobs.flow.training import train_first, train_on_pairs, train_phased
from rectified.jobs.flow.trial import Trial, trial_of
from rectified.jobs.flow.warnings import gain_warnings, warnings
from rectified.jobs.job import Context, Findings
from rectified.training import accelerator

Rounded = list[Any]


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished network of a study.

    Attributes:
        field: the flow.
        rows: what was measured.
        notes: pairs, losses, gap and more.
        drawn: trajectories or images for the report, of the first seed.
    """

    field: Field
    rows: list[Row]
    notes: Row
    drawn: Tensor | None


Done = dict[tuple[int, Stage], Trained]
"""Networks by seed and stage, in the order of the work."""


def check(plan: FlowPlan) -> FlowPlan:
    """Read the data, fill in what they decide, and try two of them in a network.

    Raises:
        UserError: if the data cannot be read, or do not fit the settings.
    """
    accelerator(plan.config.device)
    transfer = plan.data.transfer(seed=plan.seeds[0], many=plan.config.samples or 2)
    target = transfer.target
    filled = plan.filled(target.shape)
    classes = target.classes if plan.config.conditional else 0
    network = build_network(filled.budget.model, target.shape, classes, seed=0)
    x = transfer.train[:2]
    with torch.no_grad():
        network(x, x.new_zeros(len(x)))
    return filled


def study(plan: FlowPlan, context: Context) -> Findings:
    """Train and measure every network of a plan that is not done."""
    return study_all([plan], context)


def study_all(plans: Sequence[FlowPlan], context: Context) -> Findings:
    """Do the plans of one folder, which have the same data.

    Args:
        plans: the first is what the run is about, others are its controls.
        context: where to work.
    """
    plan = plans[0]
    if context.progress:  # at once, while the run can be stopped at no cost
        for words in gain_warnings(plan):
            print(f"rectified: {words}", file=sys.stderr)
    trials: dict[int, Trial] = {}
    done: Done = {}
    for one in plans:
        for seed in one.seeds:
            if seed not in trials:
                trials[seed] = trial_of(plan, seed, context)
            _do(one, trials[seed], done)
    _write(plan, trials[plan.seeds[0]], done)
    return _findings(plan, trials[plan.seeds[0]], done)


def _do(plan: FlowPlan, trial: Trial, done: Done) -> None:
    """The networks of one seed."""
    for stage in plan.stages:
        trained = _kept(plan, trial, stage)
        if trained is None:
            trained = _work(plan, trial, stage, done)
        done[trial.seed, stage] = trained


def _kept(plan: FlowPlan, trial: Trial, stage: Stage) -> Trained | None:
    """A finished network of the run that is resumed."""
    saved = trial.store("round", stage).load() if trial.context.folder.resume else None
    if saved is None:
        return None
    network = new_network(plan, trial)
    network.load_state_dict(saved["network"])
    field = as_field(plan, trial, network)
    return Trained(field, saved["rows"], saved["notes"], saved["shown"])


def _work(plan: FlowPlan, trial: Trial, stage: Stage, done: Mapping[Any, Trained]) -> Trained:
    """Train, measure and keep one network."""
    field, learnt = _train(plan, trial, stage, done)
    rows, measured = measure(plan, trial, stage, field)
    notes = {**learnt, **measured}
    picture = drawn(plan, trial, field) if trial.seed == plan.seeds[0] else None
    state = field.network.state_dict()
    trial.store("round", stage).save(
        {"network": state, "rows": rows, "notes": notes, "shown": picture}
    )
    for row in rows:
        trial.context.folder.log({"event": "measured", **row})
    return Trained(field, rows, notes, picture)


def _train(
    plan: FlowPlan, trial: Trial, stage: Stage, done: Mapping[Any, Trained]
) -> tuple[Field, Row]:
    """A flow, and what its training says."""
    if stage.start is None:
        return train_first(plan, trial, stage), {}
    teacher = done[trial.seed, stage.start].field
    phases = stage.recipe.phases
    if phases > 1:
        return train_phased(plan, trial, stage, teacher), {"phases": phases}
    return train_on_pairs(plan, trial, stage, stage.start, teacher)


def _write(plan: FlowPlan, trial: Trial, done: Done) -> None:
    """The networks that the run is about, and samples of it."""
    fields = {stage: one.field for (seed, stage), one in done.items() if seed == trial.seed}
    write_networks(plan, trial, fields, trial.context.folder)
    write_samples(plan, trial, fields[plan.last])


def _findings(plan: FlowPlan, trial: Trial, done: Done) -> Findings:
    rows = [row for trained in done.values() for row in trained.rows]
    notes = {
        f"seed {seed}, {stage.recipe.name}, round {stage.round}": {
            "recipe": stage.recipe.name,
            "round": stage.round,
            "seed": seed,
            **trained.notes,
        }
        for (seed, stage), trained in done.items()
    }
    return Findings(
        rows,
        summarise(rows),
        verdicts(rows),
        {"notes": notes, "warnings": warnings(plan, notes)},
        {"shown": _shown(trial, done)},
    )


def _shown(trial: Trial, done: Done) -> dict[str, Rounded]:
    """Paths and images of the first seed, as plain lists, for the report."""
    shown = {
        named(stage.recipe.name, stage.round): _rounded(trained.drawn)
        for (_, stage), trained in done.items()
        if trained.drawn is not None and trained.drawn.numel()
    }
    target = trial.transfer.target
    if not target.is_image and target.shape == (2,):
        shown["reference"] = _rounded(trial.transfer.reference[:1000])
    return shown


def _rounded(values: Tensor) -> Rounded:
    return torch.round(values.double() * 1000).div(1000).tolist()
