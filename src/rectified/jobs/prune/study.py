"""The study of `rectified prune`: tried on one batch, run, summarised, saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from rectified.data import ImageData
from rectified.jobs.classifiers import Architecture, check_outputs, plain_batches
from rectified.jobs.deploy import Deployment, deploy
from rectified.jobs.job import Context, Findings
from rectified.jobs.prune.comparisons import verdicts
from rectified.jobs.prune.runner import Runner, State
from rectified.jobs.prune.settings import PruneConfig, PrunePlan
from rectified.jobs.prune.trials import network, seed_data
from rectified.pruning.activate import activation_scope, norms_before_relu
from rectified.pruning.dead_neurons import dead_neuron_rate
from rectified.pruning.masks import full_masks
from rectified.runs import Run
from rectified.statistics import interval

EXAMPLES = 64  # that everything is tried on
PLAIN = {"off", "off_pro"}  # arms without AP

Row = Mapping[str, Any]


def check(plan: PrunePlan) -> PrunePlan:
    """Try data and network on one batch.

    Returns:
        The plan with what they decide: augmentation, the layers that AP may touch, notes.

    Raises:
        UserError: if one cannot be used.
    """
    seed = plan.seeds[0]
    images = plan.images(seed)
    if plan.config.augment is None:
        plan = replace(plan, augment=images.channels == 3)
    seed_data(plan, seed)  # refuses splits that make no batches
    inputs, model = _example(plan, images), network(plan, images, seed)
    masks = full_masks(model)
    check_outputs(model, inputs, len(images.classes))
    dead_neuron_rate(model, [(inputs,)], threshold=plan.config.dead_threshold)
    if set(plan.config.ap) <= PLAIN or plan.config.fidelity == "reference":
        return plan
    notes = _notes(norms_before_relu(model, inputs), len(masks))
    if plan.config.ap_scope == "all":
        return replace(plan, notes=notes)
    return replace(plan, notes=notes, layers=activation_scope(model, inputs, masks))


def _example(plan: PrunePlan, images: ImageData) -> Tensor:
    first = images.train.select(torch.arange(min(EXAMPLES, len(images.train))))
    inputs, _ = next(iter(plain_batches(first, images, device=plan.device)))
    return inputs


def _notes(normed: Sequence[str], count: int) -> tuple[str, ...]:
    """AP's argument fails where a norm removes the shift again."""
    if not normed:
        return ()
    return (
        f"a norm stands between weight and ReLU in {len(normed)} of {count} layers: it removes "
        "the shift that AP relies on, and AP can raise the dead neuron rate there",
    )


def study(plan: PrunePlan, context: Context) -> Findings:
    """Run all trials, save the best network, and make it lean where that is asked for."""
    state = Runner(plan, context).run()
    best = state.best
    images = plan.images(best["seed"])
    architecture = Architecture.of(plan.config.model, images, norm=plan.norm)
    details = _details(plan, state, architecture)
    more: dict[str, Any] = {}
    context.folder.write_weights(best["state"], {"model": plan.config.model, **details["saved"]})
    if plan.config.deploy and context.folder.writer:
        deployment = _deployed(plan, best, architecture, context.folder)
        more["deploy"] = deployment.sizes
        details["deployment"] = vars(deployment)
    rows = sorted(state.rows, key=_place(plan.config))
    return Findings(rows, summarise(rows), verdicts(rows), more, details)


def _details(plan: PrunePlan, state: State, architecture: Architecture) -> dict[str, Any]:
    return {
        "layers": state.layers,
        "notes": plan.notes,
        "shortfalls": state.shortfalls,
        "saved": {name: str(value) for name, value in state.best.items() if name != "state"},
        "architecture": asdict(architecture),
    }


def _place(config: PruneConfig) -> Callable[[Row], tuple[int, ...]]:
    """The place of a row: scores and arms in the order in which they were asked for."""
    return lambda row: (
        config.score.index(row["score"]),
        config.ap.index(row["ap"]),
        row["seed"],
        row["cycle"],
    )


def _deployed(plan: PrunePlan, best: Row, architecture: Architecture, folder: Run) -> Deployment:
    """The saved network made lean, and measured on the test split."""
    data = seed_data(plan, best["seed"])
    model: nn.Module = network(plan, data.images, best["seed"])
    model.load_state_dict(best["state"])
    if not plan.config.drop_never_fires:
        inputs, _ = next(iter(data.test))
        return deploy(model, architecture, inputs, folder)
    dead = dead_neuron_rate(model, data.neurons)
    inputs, _ = next(iter(data.neurons))  # the claim is about these
    never_fires = {site.name: site.never_fires for site in dead.sites}
    made = deploy(model, architecture, inputs, folder, never_fires=never_fires)
    note = (
        f"neurons that never fired on {dead.examples} training examples were removed: on "
        "other data they might have fired"
    )
    return replace(made, notes=[*made.notes, note])


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over seeds, a line per arm and cycle."""
    points: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        points.setdefault((row["score"], row["ap"], row["cycle"]), []).append(row)
    summary = []
    for (score, ap, cycle), members in points.items():
        accuracy = interval(row["accuracy"] for row in members)
        summary.append(
            {
                "score": score,
                "ap": ap,
                "cycle": cycle,
                "density": interval(row["density"] for row in members).mean,
                "accuracy_mean": accuracy.mean,
                "accuracy_ci95": accuracy.half_width,
                "dynamic_dnr_mean": interval(row["dynamic_dnr"] for row in members).mean,
                "n": len(members),
            }
        )
    return summary
