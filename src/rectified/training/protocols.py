"""The protocols of training: what an objective, batches, a hook and a store are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Batch = tuple[Tensor, ...]  # first axis: batch


@runtime_checkable
class Objective(Protocol):
    """The mean loss of one batch."""

    def __call__(self, model: nn.Module, batch: Batch, /) -> Float[Tensor, ""]: ...


@runtime_checkable
class Batches(Protocol):
    """Training data: `len` batches per epoch, the same ones for the same epoch's number."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, /) -> Iterator[Batch]: ...


@runtime_checkable
class Store(Protocol):
    """The store of an unfinished training: nested dicts of tensors and plain values."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: dict[str, Any], /) -> None: ...


@dataclass(frozen=True)
class Step:
    """The view that a hook gets after an update.

    Attributes:
        number: of this update, from 1, over the whole training.
        total: updates in the whole training.
        model: the network in training, without wrappers.
        loss: of this batch, detached.
        optimizer: the one that made the update.
    """

    number: int
    total: int
    model: nn.Module
    loss: Tensor
    optimizer: torch.optim.Optimizer


Hook = Callable[[Step], None]
