"""A trial is one network of a study: a seed, a score and an arm. Its data, weights and measures.

Trials of a seed share splits, order and initial weights, and the trained dense network, which is a
trial of its own (arm `dense`): only a score that watches the training needs one for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rectified.data import Batches, ImageData
from rectified.jobs.classifiers import build, plain_batches, training_batches
from rectified.jobs.prune.settings import PrunePlan, score_of
from rectified.pruning.cycle import Cycle
from rectified.pruning.dead_neurons import DeadNeurons, dead_neuron_rate
from rectified.training import classification_quality, evaluate

DENSE = "dense"


@dataclass(frozen=True, order=True)
class Trial:
    """One network of a study."""

    seed: int
    score: str
    ap: str

    @property
    def key(self) -> str:
        """Its name in a checkpoint."""
        return f"{self.seed}/{self.score}/{self.ap}"

    @property
    def names(self) -> dict[str, Any]:
        """Its columns of a row."""
        return {"seed": self.seed, "score": self.score, "ap": self.ap}


def trials(plan: PrunePlan, seeds: Sequence[int]) -> list[Trial]:
    """All trials of some seeds."""
    scores, arms = plan.config.score, plan.config.ap
    return [Trial(seed, score, ap) for seed in seeds for score in scores for ap in arms]


def dense_of(plan: PrunePlan, trial: Trial) -> Trial:
    """The trial whose dense network a trial prunes."""
    watches = score_of(trial.score, trial.seed).watches
    return Trial(trial.seed, trial.score if watches else plan.config.score[0], DENSE)


@dataclass(frozen=True)
class SeedData:
    """The data that the trials of one seed share.

    Attributes:
        images: the splits.
        training: shuffled batches.
        validation: for the choice of what is saved.
        test: for what is reported.
        neurons: training examples on which dead neurons are counted.
    """

    images: ImageData
    training: Batches
    validation: Batches
    test: Batches
    neurons: Batches


def seed_data(plan: PrunePlan, seed: int) -> SeedData:
    """The splits, order and augmentation that a seed decides."""
    images, device = plan.images(seed), plan.device
    counted = images.train.select(torch.arange(min(plan.config.dead_examples, len(images.train))))
    training = training_batches(
        images, plan.batch_size, seed=seed, augment=plan.augment, device=device
    )
    plain = [
        plain_batches(split, images, device=device)
        for split in (images.validation, images.test, counted)
    ]
    return SeedData(images, training, *plain)


def network(plan: PrunePlan, images: ImageData, seed: int) -> nn.Module:
    """The network with the initial weights that a seed decides, where it is trained."""
    made = build(
        plan.config.model,
        images,
        seed=seed,
        norm=plan.norm,
        weights=plan.config.weights,
        by=plan.recipe,
    )
    return made.to(plan.device)


@dataclass(frozen=True)
class Measured:
    """A network at the end of a cycle.

    Attributes:
        row: its columns of a row: density, accuracy, loss and dead neuron rates.
        dead: its dead neurons.
        validation: its accuracy on the validation split; None before the last cycle.
    """

    row: dict[str, Any]
    dead: DeadNeurons
    validation: float | None


def measure(plan: PrunePlan, cycle: Cycle, data: SeedData, seed: int) -> Measured:
    """Measure the network that a cycle ended with."""
    model = network(plan, data.images, seed)
    model.load_state_dict(cycle.trained)
    threshold = plan.config.dead_threshold
    dead = dead_neuron_rate(model, data.neurons, masks=cycle.masks, threshold=threshold)
    row: dict[str, Any] = {
        "cycle": cycle.number,
        "density": cycle.density,
        **_quality(plan, model, data.test),
        "dynamic_dnr": dead.dynamic(),
        "static_dnr": dead.static(),
    }
    is_last = cycle.number == plan.config.cycles
    validation = _quality(plan, model, data.validation)["accuracy"] if is_last else None
    return Measured(row, dead, validation)


def _quality(plan: PrunePlan, model: nn.Module, batches: Batches) -> dict[str, float]:
    found = evaluate(model, classification_quality, batches, device=plan.fit.device)
    return {"accuracy": found["accuracy"], "loss": found["loss"]}


def layer_rows(trial: Trial, cycle: Cycle, dead: DeadNeurons) -> list[dict[str, Any]]:
    """Weights kept in every layer and dead neurons of every site, at the end of a trial."""
    kept = [
        {
            **trial.names,
            "kind": "layer",
            "name": name,
            "weights": mask.numel(),
            "kept": int(mask.sum()),
        }
        for name, mask in cycle.masks.items()
    ]
    sites = [
        {
            **trial.names,
            "kind": "site",
            "name": name,
            "neurons": one.neurons,
            "dynamic": one.dynamic(),
            "never_fires": one.static(),
            "masked": one.static("masked"),
            "constant": one.constant,
        }
        for name, one in dead.by_site().items()
    ]
    return kept + sites
