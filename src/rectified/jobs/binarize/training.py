"""One arm of `rectified binarize`: a network trained epoch by epoch, measured after each.

After every epoch its checkpoint holds rows, weights and optimiser, to go on from. An arm
needs nothing of the others, so several can run in processes of their own.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectified.binary import Indicators, anneal, convert, outer_layers, set_progress
from rectified.binary.layers import binary_layers
from rectified.data import ImageData, ImageSource
from rectified.errors import UserError
from rectified.jobs.binarize.settings import BinarizeConfig, Plan, resolve
from rectified.jobs.classifiers import build, plain_batches, training_batches
from rectified.runs import FileStore
from rectified.training import (
    TrainingState,
    accelerator,
    classification,
    classification_quality,
    evaluate,
    fit,
)


@dataclass(frozen=True)
class Task:
    """A training to do.

    Attributes:
        config: the settings.
        source: of the pictures.
        estimator: the arm.
        seed: of the split, the initial weights and the order of the data.
        store: where the unfinished training is kept.
        writer: whether this process writes there.
        words: before the progress bar; none is shown without.
    """

    config: BinarizeConfig
    source: ImageSource
    estimator: str
    seed: int
    store: Path
    writer: bool = True
    words: str = ""

    @property
    def key(self) -> str:
        """Its name in a checkpoint."""
        return f"{self.estimator}/{self.seed}"


@dataclass
class Trained:
    """The state of a training.

    Attributes:
        rows: one per epoch, as in results.json.
        layers: the indicators of every layer and epoch.
        validation: accuracy on the validation split at the end; NaN where there is none.
        model: the network's state_dict.
        optimizer: the optimiser's.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    validation: float = float("nan")
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None


def make_network(plan: Plan, images: ImageData, estimator: str, seed: int) -> nn.Module:
    """The network of an arm, with the initial weights that a seed decides."""
    config, arm = plan.config, plan.arms[estimator]
    made = build(config.model, images, seed=seed, weights=config.weights, by=plan.network)
    if arm.weights is None:
        return made
    return convert(
        made,
        keep=outer_layers(made),
        estimator=arm.weights,
        activation_estimator=arm.activations,
        activation_bits=config.activation_bits,
        scale=config.scale,
        standardize=arm.standardize,
    )


def train(task: Task) -> Trained:
    """Train one arm, from where its checkpoint has it.

    Returns:
        The finished training; its optimiser is left out.

    Raises:
        UserError: if the loss is not finite, or weights are not at the end.
    """
    plan = replace(resolve(task.config), source=task.source)
    images = plan.data(task.seed)
    device = accelerator(plan.config.device).device
    model = make_network(plan, images, task.estimator, task.seed).to(device)
    store = FileStore(task.store, writer=task.writer)
    trained = Trained(**(store.load() or {}))
    if trained.model:
        model.load_state_dict(trained.model)
    _train_on(task, plan, model, images, trained, store)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{task.key}: {name!r} became NaN or infinite; lower learning_rate")
    if len(images.validation):
        held_out = plain_batches(images.validation, images, device=device)
        trained.validation = _accuracy(model, held_out, plan.config.device)
    trained.optimizer = None
    return trained


def _train_on(
    task: Task, plan: Plan, model: nn.Module, images: ImageData, trained: Trained, store: FileStore
) -> None:
    """The epochs that are left."""
    config, device = plan.config, accelerator(plan.config.device).device
    augment = images.channels == 3 if config.augment is None else config.augment
    batches = training_batches(
        images, plan.batch_size, seed=task.seed, augment=augment, device=device
    )
    test = plain_batches(images.test, images, device=device)
    state = TrainingState(trained.optimizer)
    if not trained.rows:
        set_progress(model, 0.0)
    with Indicators(model, every=len(batches)) as indicators:
        for epoch in range(len(trained.rows), plan.fit.epochs):
            fit(
                model,
                classification,
                batches,
                replace(plan.fit, seed=task.seed),
                hooks=[indicators, anneal],
                start=epoch,
                stop=epoch + 1,
                state=state,
                progress=f"{task.words} epoch {epoch + 1}" if task.words else "",
            )
            accuracy = _accuracy(model, test, config.device)
            is_float = plan.arms[task.estimator].weights is None
            _record(task, epoch + 1, accuracy, indicators.found[-1], trained, is_float=is_float)
            trained.model = {n: v.detach().cpu() for n, v in model.state_dict().items()}
            trained.optimizer = state.optimizer
            store.save(vars(trained))


def _accuracy(model: nn.Module, batches: Any, device: str) -> float:
    return evaluate(model, classification_quality, batches, device=device)["accuracy"]


def _record(
    task: Task,
    epoch: int,
    accuracy: float,
    measured: Mapping[str, Any],
    trained: Trained,
    *,
    is_float: bool,
) -> None:
    about = {"seed": task.seed, "estimator": task.estimator}
    trained.rows.append(
        {
            **about,
            "weight_bits": 32 if is_float else task.config.weight_bits,
            "activation_bits": 32 if is_float else task.config.activation_bits,
            "epoch": epoch,
            "accuracy": accuracy,
            # a network in full precision has neither
            "estimating_error": math.nan if is_float else measured["estimating_error"],
            "gradient_instability": math.nan if is_float else measured["gradient_instability"],
        }
    )
    trained.layers += [{**about, "epoch": epoch, **layer} for layer in measured["layers"]]


def converted(model: nn.Module) -> list[dict[str, Any]]:
    """The outcome of conversion for every layer with weights, for the report."""
    binary = binary_layers(model)
    return [
        {
            "name": name,
            "kind": type(layer).__name__,
            "weights": layer.get_parameter("weight").numel(),
            "is_binary": name in binary,
        }
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]


def train_alone(task: Task) -> tuple[Task, Trained]:
    """`train` in a process that does nothing else: on one thread, keeping its memory."""
    torch.set_num_threads(1)
    _keep_memory()
    return task, train(task)


def _keep_memory() -> None:
    """Let glibc keep freed memory: giving it back and taking it again is a fifth of a training."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            trim_threshold, mmap_threshold = -1, -3  # malloc.h
            mallopt(trim_threshold, 1 << 30)
            mallopt(mmap_threshold, 1 << 25)  # the largest that every version takes
