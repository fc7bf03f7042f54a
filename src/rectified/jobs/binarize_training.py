"""One arm of `rectified binarize`: a network trained epoch by epoch, measured after each.

After every epoch its checkpoint holds rows, weights and optimiser, to go on from. An arm
needs nothing of the others, so several can run in processes of their own.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectified.binary import Indicators, anneal, convert, outer_layers, set_progress
from rectified.binary.estimators import ESTIMATORS
from rectified.binary.layers import binary_layers
from rectified.data import ImageData, load_images
from rectified.errors import UserError
from rectified.jobs.binarize_settings import BinarizeConfig, fit_config, network
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
    """What to train.

    Attributes:
        config: the settings, resolved.
        estimator: the arm.
        seed: of the split, the initial weights and the order of the data.
        store: where the unfinished training is kept.
        writer: whether this process writes there.
        words: before the progress bar; none is shown without.
    """

    config: BinarizeConfig
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
    """Where a training stands.

    Attributes:
        rows: one an epoch, as in results.json.
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


@lru_cache(maxsize=1)
def data_of(data: str, seed: int, limit: int | None) -> ImageData:
    """A seed's split; the arms of a seed share it."""
    return load_images(data, seed=seed, limit=limit)


def make_network(config: BinarizeConfig, images: ImageData, estimator: str, seed: int) -> nn.Module:
    """The network of an arm, with the initial weights that a seed decides."""
    recipe = network(config.model)
    made = build(config.model, images, seed=seed, weights=config.weights, by=recipe)
    arm = ESTIMATORS[estimator]
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
    _keep_memory()
    config = task.config
    images = data_of(config.data, task.seed, config.limit)
    device = accelerator(config.device).device
    model = make_network(config, images, task.estimator, task.seed).to(device)
    store = FileStore(task.store, writer=task.writer)
    saved = store.load()
    found = Trained(**saved) if saved else Trained()
    if found.model:
        model.load_state_dict(found.model)
    _go_on(task, model, images, found, store)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{task.key}: {name!r} became NaN or infinite; lower learning_rate")
    if len(images.validation):
        held_out = plain_batches(images.validation, images, device=device)
        found.validation = _accuracy(model, held_out, config.device)
    found.optimizer = None
    return found


def _go_on(
    task: Task, model: nn.Module, images: ImageData, found: Trained, store: FileStore
) -> None:
    """The epochs that are left."""
    config, device = task.config, accelerator(task.config.device).device
    assert config.epochs is not None
    assert config.batch_size is not None
    augment = images.channels == 3 if config.augment is None else config.augment
    batches = training_batches(
        images, config.batch_size, seed=task.seed, augment=augment, device=device
    )
    test = plain_batches(images.test, images, device=device)
    state = TrainingState(found.optimizer)
    if not found.rows:
        set_progress(model, 0.0)
    with Indicators(model, every=len(batches)) as indicators:
        for epoch in range(len(found.rows), config.epochs):
            fit(
                model,
                classification,
                batches,
                fit_config(config, task.seed),
                hooks=[indicators, anneal],
                start=epoch,
                stop=epoch + 1,
                state=state,
                progress=f"{task.words} epoch {epoch + 1}" if task.words else "",
            )
            accuracy = _accuracy(model, test, config.device)
            _record(task, epoch + 1, accuracy, indicators.found[-1], found)
            found.model = {n: v.detach().cpu() for n, v in model.state_dict().items()}
            found.optimizer = state.optimizer
            store.save(vars(found))


def _accuracy(model: nn.Module, batches: Any, device: str) -> float:
    return evaluate(model, classification_quality, batches, device=device)["accuracy"]


def _record(
    task: Task, epoch: int, accuracy: float, measured: Mapping[str, Any], found: Trained
) -> None:
    is_float = ESTIMATORS[task.estimator].weights is None
    about = {"seed": task.seed, "estimator": task.estimator}
    found.rows.append(
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
    found.layers += [{**about, "epoch": epoch, **layer} for layer in measured["layers"]]


def converted(model: nn.Module) -> list[dict[str, Any]]:
    """What became of every layer with weights, for the report."""
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


def _keep_memory() -> None:
    """Let glibc keep freed memory: giving it back and taking it again is a fifth of a training."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            trim_threshold, mmap_threshold = -1, -3  # malloc.h
            mallopt(trim_threshold, 1 << 30)
            mallopt(mmap_threshold, 1 << 25)  # the largest that every version takes
