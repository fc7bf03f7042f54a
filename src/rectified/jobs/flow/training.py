"""The training of one network of a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rectified import flow
from rectified.flow import Draws, Field, FlowMatching
from rectified.jobs.flow.networks import as_field, new_network
from rectified.jobs.flow.pairs import make_pairs, with_inverted
from rectified.jobs.flow.plan import FlowPlan
from rectified.jobs.flow.recipes import Recipe, Stage
from rectified.jobs.flow.trial import Trial
from rectified.networks import evaluating
from rectified.seeds import seeded
from rectified.training import Objective, fit

HELD_OUT = 1000  # pairs that a reflow is not trained on, at most a tenth


def train_first(plan: FlowPlan, trial: Trial, stage: Stage) -> Field:
    """The first flow: source and target coupled as the settings say."""
    coupling = plan.coupling(trial.transfer.coupling_source())
    objective = FlowMatching(
        coupling,
        plan.path,
        plan.predicts,
        stage.recipe.times,
        stage.recipe.terms,
        plan.label_drop,
    )
    network = new_network(plan, trial)
    _fit(plan, trial, stage, network, objective, _data(trial))
    return as_field(plan, trial, network)


def train_phased(plan: FlowPlan, trial: Trial, stage: Stage, teacher: Field) -> Field:
    """A flow that is first-order in each phase alone; it needs no pairs."""
    objective = flow.Phased(
        teacher,
        stage.recipe.phases,
        guidance=plan.config.pair_guidance,
        label_drop=plan.label_drop,
    )
    network = _copied(plan, trial, teacher)
    _fit(plan, trial, stage, network, objective, _data(trial))
    return as_field(plan, trial, network)


def train_on_pairs(
    plan: FlowPlan, trial: Trial, stage: Stage, maker: Stage, teacher: Field
) -> tuple[Field, dict[str, Any]]:
    """A reflow, or a distillation, from the last flow's weights; and notes on it."""
    pairs = make_pairs(plan, trial, stage, maker, teacher)
    count = min(HELD_OUT, len(pairs[0]) // 10)
    held_out, kept = [p[:count] for p in pairs], [p[count:] for p in pairs]
    learnt = with_inverted(plan, trial, kept, teacher)
    objective = _on_pairs(plan, trial, stage.recipe)
    network = _copied(plan, trial, teacher)
    _fit(plan, trial, stage, network, objective, learnt)
    field = as_field(plan, trial, network)
    notes = {
        **_pair_notes(trial, pairs),
        "loss": _loss(trial, field, objective, learnt),
        "held_out_loss": _loss(trial, field, objective, held_out),
        "one_step_only": stage.recipe.is_distilled,
    }
    return field, notes


def _copied(plan: FlowPlan, trial: Trial, teacher: Field) -> nn.Module:
    """A network that begins where another ended."""
    network = new_network(plan, trial)
    network.load_state_dict(teacher.network.state_dict())
    return network


def _data(trial: Trial) -> list[Tensor]:
    """Data of which batches are drawn: points, and classes for a conditional flow."""
    target = trial.transfer.target
    return [trial.transfer.train, *([target.labels] if trial.classes else [])]


def _on_pairs(plan: FlowPlan, trial: Trial, recipe: Recipe) -> FlowMatching:
    terms = flow.rfpp_terms(trial.perceptual) if recipe.is_perceptual else recipe.terms
    return FlowMatching(None, plan.path, plan.predicts, recipe.times, terms, plan.label_drop)


def _fit(
    plan: FlowPlan,
    trial: Trial,
    stage: Stage,
    network: nn.Module,
    objective: Objective,
    tensors: Sequence[Tensor],
) -> None:
    config, updates = plan.fitting(stage, trial.seed)
    size = min(plan.budget.batch_size, len(tensors[0]))
    moved = [tensor.to(trial.place) for tensor in tensors]
    draws = Draws(moved, size=size, updates=updates, seed=trial.seed)
    words = trial.words(stage, "training")
    fit(network, objective, draws, config, store=trial.store("training", stage), progress=words)


def _pair_notes(trial: Trial, pairs: Sequence[Tensor]) -> dict[str, Any]:
    checked = flow.check_pairs(*pairs[:2])
    is_noise = trial.transfer.source is None  # else the ends cannot be told apart
    return {
        "pairs": len(pairs[0]),
        "pairs_distance": trial.distance.measure(pairs[1][: trial.samples]),
        "source_mean": checked.mean,
        "source_deviation": checked.deviation,
        "duplicates": checked.duplicates,
        "oriented": checked.is_oriented if is_noise else None,
    }


@torch.no_grad()
def _loss(trial: Trial, field: Field, objective: FlowMatching, pairs: Sequence[Tensor]) -> float:
    """The objective on some pairs, in evaluation mode."""
    rows = tuple(p[:HELD_OUT].to(trial.place) for p in pairs)
    with seeded(trial.seed, "loss", device=trial.place), evaluating(field.network):
        return float(objective(field.network, rows))
