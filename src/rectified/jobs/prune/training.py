"""Trainings that pruning plans ask for: one by one, or many networks at once.

On a GPU the networks of a step are branches of one CUDA graph (`rectified.training.capture`); on a
CPU small ones are stacked into one module (`rectified.models.Ensemble`), and convolutional ones,
which keep a processor busy alone, are trained in turn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rectified.data import Batches
from rectified.models import Ensemble
from rectified.pruning.cycle import Training
from rectified.pruning.masks import hold
from rectified.training import (
    Batch,
    FitConfig,
    Store,
    accelerator,
    choose_device,
    classification,
    fit,
)
from rectified.training.capture import Branch, CannotCapture, fit_branches

# what a fine-tuning rate is to the peak rate, where none is given (as after three drops by ten)
FINETUNE_FACTOR = 1e-3


@dataclass(frozen=True)
class Request:
    """A training that a plan waits for.

    Attributes:
        training: what to train.
        batches: its data.
        seed: of everything that is drawn in it.
    """

    training: Training
    batches: Batches
    seed: int


def side_by_side(config: FitConfig, together: int) -> int:
    """The number of networks that are trained at once where `together` are asked for.

    Several processes share every batch, which several networks need for themselves; on a CPU
    convolutions in their own memory format are not stacked.

    Example:
        >>> side_by_side(FitConfig(device="cpu", channels_last=True), 8)
        1
    """
    if accelerator(config.device).num_processes > 1:
        return 1
    is_cpu = choose_device(config.device).type == "cpu"
    return 1 if is_cpu and config.channels_last else together


def train_all(
    requests: Sequence[Request],
    config: FitConfig,
    *,
    together: int,
    store: Store,
    progress: str = "",
) -> None:
    """Do the trainings: up to `together` of the same kind at once, the others in turn.

    Args:
        requests: what to train; the networks are trained in place.
        config: how; a request's seed takes the place of the one in it.
        together: how many networks may be trained at once.
        store: keeps the training under way, and gives it back to the same training alone.
        progress: words before the progress bar.
    """
    together = side_by_side(config, together)
    alike: dict[Any, list[Request]] = {}
    for number, request in enumerate(requests):
        asked = request.training
        own = number if together == 1 or asked.watched else -1
        key = (own, asked.start, asked.stop, asked.finetune, len(request.batches))
        alike.setdefault(key, []).append(request)
    for group in alike.values():
        for first in range(0, len(group), together):
            part = group[first : first + together]
            _way(part, config)(part, _settings(part[0], config), store, progress)


Way = Callable[[Sequence[Request], FitConfig, Store, str], None]


def _way(requests: Sequence[Request], config: FitConfig) -> Way:
    """The function that does these trainings."""
    on_gpu = choose_device(config.device).type == "cuda"
    alone = accelerator(config.device).num_processes == 1
    if on_gpu and alone and not any(request.training.watched for request in requests):
        return _train_branches
    return _train_one if len(requests) == 1 else _train_together


class _KeyedStore:
    """A store that gives back only what was saved for the same training."""

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.key = key

    def load(self) -> dict[str, Any] | None:
        saved = self.store.load()
        return saved["state"] if saved is not None and saved["key"] == self.key else None

    def save(self, state: dict[str, Any], /) -> None:
        self.store.save({"key": self.key, "state": state})


def _key(requests: Sequence[Request], way: str) -> str:
    """A digest of what decides the trainings: their epochs and seeds, weights and masks."""
    digest = sha256(way.encode())
    for request in requests:
        asked = request.training
        digest.update(repr((request.seed, asked.start, asked.stop, asked.finetune)).encode())
        for name, value in [*asked.model.state_dict().items(), *asked.masks.items()]:
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(name.encode() + content.numpy().tobytes())
    return digest.hexdigest()


def _settings(request: Request, config: FitConfig) -> FitConfig:
    config = replace(config, seed=request.seed)
    if not request.training.finetune:
        return config
    rate = config.learning_rate * FINETUNE_FACTOR
    return replace(config, schedule="constant", warmup=0.0, learning_rate=rate)


def _train_one(requests: Sequence[Request], config: FitConfig, store: Store, progress: str) -> None:
    (request,) = requests
    asked = request.training
    fit(
        asked.model,
        classification,
        request.batches,
        config,
        hooks=[hold(asked.model, asked.masks)],
        start=asked.start,
        stop=asked.stop,
        state=asked.state,
        # what a score has seen is not in the store
        store=None if asked.watched else _KeyedStore(store, _key(requests, "one")),
        progress=progress,
    )


def _train_branches(
    requests: Sequence[Request], config: FitConfig, store: Store, progress: str
) -> None:
    """As branches of one graph; where that cannot be, fewer of them, or in turn."""
    try:
        fit_branches(
            [
                Branch(
                    request.training.model,
                    request.batches,
                    hold(request.training.model, request.training.masks),
                    request.training.state,
                )
                for request in requests
            ],
            classification,
            config,
            start=requests[0].training.start,
            stop=requests[0].training.stop,
            store=_KeyedStore(store, _key(requests, "branches")),
            progress=progress,
        )
    except CannotCapture as refusal:
        half = len(requests) // 2
        if refusal.is_memory and half:
            _warn_once(f"{len(requests)} networks do not fit into memory: trained in two parts")
            parts: Sequence[Sequence[Request]] = (requests[:half], requests[half:])
            way: Way = _train_branches
        else:
            _warn_once(f"networks are trained in turn, operation by operation: {refusal}")
            parts, way = [[request] for request in requests], _train_one
    else:
        return
    for part in parts:
        way(part, replace(config, seed=part[0].seed), store, progress)


@cache
def _warn_once(message: str) -> None:
    print(f"rectified: {message}", file=sys.stderr, flush=True)


def _train_together(
    requests: Sequence[Request], config: FitConfig, store: Store, progress: str
) -> None:
    trainings = [request.training for request in requests]
    ensemble = Ensemble([asked.model for asked in trainings])
    masks = ensemble.stacked([asked.masks for asked in trainings])
    state = replace(trainings[0].state, optimizer=_stack([a.state.optimizer for a in trainings]))
    fit(
        ensemble,
        _ensemble_classification,
        _TogetherBatches([request.batches for request in requests]),
        config,
        hooks=[hold(ensemble, masks)],
        start=trainings[0].start,
        stop=trainings[0].stop,
        state=state,
        store=_KeyedStore(store, _key(requests, "stacked")),
        progress=progress,
    )
    ensemble.unstack_()
    for asked, optimizer in zip(trainings, _unstack(state.optimizer, len(trainings)), strict=True):
        asked.state.optimizer = optimizer


def _ensemble_classification(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Sum over the networks of their mean cross-entropies: each gets its own gradient."""
    inputs, labels = batch
    logits = model(inputs).float()
    mean = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return mean * len(labels)


class _TogetherBatches:
    """The batches of several data sets, stacked: first axis network, second example."""

    def __init__(self, batches: Sequence[Batches]) -> None:
        self.batches = batches
        self.distinct = list({id(one): one for one in batches}.values())
        position = {id(one): i for i, one in enumerate(self.distinct)}
        self.order = torch.tensor([position[id(one)] for one in batches])

    def __len__(self) -> int:
        return len(self.batches[0])

    def epoch(self, number: int, /) -> Iterator[Batch]:
        for parts in zip(*(one.epoch(number) for one in self.distinct), strict=True):
            yield tuple(
                torch.stack(values)[self.order.to(values[0].device)]
                for values in zip(*parts, strict=True)
            )


def _stack(states: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """One optimiser state for the ensemble, from those of its networks."""
    if states[0] is None:
        return None
    entries = [state["state"] for state in states if state is not None]
    stacked = {
        key: {
            # a scalar, such as Adam's number of steps, is the same for all
            name: torch.stack([e[key][name] for e in entries]) if value.ndim else value
            for name, value in entries[0][key].items()
        }
        for key in entries[0]
    }
    return {"state": stacked, "param_groups": states[0]["param_groups"]}


def _unstack(state: dict[str, Any] | None, count: int) -> list[dict[str, Any] | None]:
    if state is None:
        return [None] * count
    return [
        {
            "state": {
                key: {n: (value[i] if value.ndim else value).clone() for n, value in entry.items()}
                for key, entry in state["state"].items()
            },
            "param_groups": state["param_groups"],
        }
        for i in range(count)
    ]
