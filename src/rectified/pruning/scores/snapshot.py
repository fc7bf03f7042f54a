"""Snapshots: what a score may look at, at the end of one training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.pruning.masks import Masks
from rectified.training import Batch, Objective

MOMENTS = ("initial", "trained")


@dataclass(frozen=True)
class Snapshot:
    """A network before and after one training, and what it was trained with.

    Attributes:
        model: the architecture, without wrappers; a score never changes it.
        trained: full `state_dict` after this training.
        initial: full `state_dict` at this training's start (rewound and masked).
        masks: name -> bool, `True` = kept; only these parameters are scored.
        batches: training batches; can be iterated again and again.
        objective: mean loss of a batch; needed by scores that use gradients.
    """

    model: nn.Module
    trained: Mapping[str, Tensor]
    initial: Mapping[str, Tensor]
    masks: Masks
    batches: Iterable[Batch] = ()
    objective: Objective | None = None


@torch.no_grad()
def network_at(snapshot: Snapshot, at: str) -> nn.Module:
    """A private copy in training mode with the weights of one moment, pruned ones at zero."""
    network = copy.deepcopy(snapshot.model).train()
    network.load_state_dict(snapshot.trained if at == "trained" else snapshot.initial)
    network.requires_grad_(False)
    for name, mask in snapshot.masks.items():
        network.get_parameter(name).mul_(mask).requires_grad_()
    return network


def first_batch(snapshot: Snapshot) -> Batch:
    """The first of a snapshot's training batches.

    Raises:
        UserError: if there is none.
    """
    for batch in snapshot.batches:
        return batch
    raise UserError("batches must hold at least one batch, got none")
