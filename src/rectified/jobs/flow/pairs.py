"""Pairs that a reflow is trained on: what the last flow makes of its source, kept in shards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rectified import flow
from rectified.flow import Field, PairStore
from rectified.flow.solvers import SOLVERS
from rectified.jobs.flow.plan import FlowPlan
from rectified.jobs.flow.recipes import Stage
from rectified.jobs.flow.trial import Trial
from rectified.runs import CHECKPOINT

SHARD = 4096  # pairs per file; making so many takes seconds, and that is what a kill can cost


def make_pairs(
    plan: FlowPlan, trial: Trial, stage: Stage, maker: Stage, teacher: Field
) -> tuple[Tensor, ...]:
    """Source points, samples and, for a conditional flow, labels.

    Args:
        plan: of the study.
        trial: one seed of it.
        stage: what will be trained on them.
        maker: what makes them.
        teacher: its flow.
    """
    target, solver = trial.transfer.target, _solver(plan, is_image=trial.transfer.target.is_image)
    identity: dict[str, str | int | float] = {
        "model": flow.fingerprint(teacher.network),
        "steps": plan.config.pair_steps,
        "solver": solver,
    }
    store = PairStore(
        trial.context.folder.path / CHECKPOINT / f"pairs-{trial.seed}-{maker.name}",
        count=plan.budget.pairs,
        shard=SHARD,
        seed=1_000_000 * (trial.seed + 1) + 1000 * stage.round,
        identity=identity,
    )
    return flow.make_pairs(
        teacher,
        store,
        target.shape,
        steps=plan.config.pair_steps,
        step=SOLVERS[solver],
        source=None if trial.transfer.source is None else trial.transfer.draw,
        classes=trial.classes,
        guidance=plan.config.pair_guidance,
        device=trial.place,
        progress=trial.words(stage, "pairs"),
    )


def _solver(plan: FlowPlan, *, is_image: bool) -> str:
    if not plan.path.is_straight:
        return "exponential2"  # of second order there, at one evaluation per step
    return "natural_euler" if is_image else "rk4"


def with_inverted(
    plan: FlowPlan, trial: Trial, pairs: Sequence[Tensor], teacher: Field
) -> list[Tensor]:
    """The pairs, and real data with the noise that the last flow sends there."""
    share, transfer = plan.config.inverted, trial.transfer
    if not share:
        return list(pairs)
    wanted = round(len(pairs[0]) * share / (1 - share))
    rows = torch.arange(wanted) % len(transfer.train)
    noise = _inverted(plan, trial, teacher, min(wanted, len(transfer.train)))
    added = [noise[rows], transfer.train[rows], transfer.target.labels[rows]]
    return [torch.cat([old, new]) for old, new in zip(pairs, added, strict=False)]


def _inverted(plan: FlowPlan, trial: Trial, teacher: Field, count: int) -> Tensor:
    """The noise of the first training examples."""
    data = trial.transfer.train[:count].to(trial.place).split(SHARD)
    labels = trial.transfer.target.labels[:count].to(trial.place).split(SHARD)
    fields = [teacher.given(part) if trial.classes else teacher for part in labels]
    parts = [
        flow.invert(field, part, steps=plan.config.pair_steps)
        for field, part in zip(fields, data, strict=True)
    ]
    return torch.cat(parts).cpu()
