"""SNIP against finite differences in the mask."""

from __future__ import annotations

import torch
from torch import Tensor

from rectified.pruning.scores import SNIP
from tests.pruning.scores.snapshots import central_difference, loss_at, perceptron, snapshot_of


def test_snip_is_the_loss_slope_in_the_mask_at_the_start() -> None:
    snapshot = snapshot_of(perceptron(3, 4, 3), 3, share=1.1)
    scores = SNIP()(snapshot)
    for name, mask in snapshot.masks.items():
        start = snapshot.initial

        def loss(m: Tensor, name: str = name, start: dict[str, Tensor] = start) -> Tensor:
            return loss_at(snapshot, {**start, name: m * start[name]}, 1)

        slope = central_difference(loss, mask.double(), 1e-5)
        torch.testing.assert_close(scores[name], slope.abs(), rtol=1e-6, atol=1e-8)
