"""The global gradient against finite differences."""

from __future__ import annotations

import torch

from rectified.pruning.scores import Gradient
from tests.pruning.scores.snapshots import central_difference, loss_at, perceptron, snapshot_of


def test_gradient_is_the_loss_slope_by_finite_differences_times_the_weight() -> None:
    snapshot = snapshot_of(perceptron(3, 4, 3), 3)
    scores = Gradient(batches=2)(snapshot)
    for name, mask in snapshot.masks.items():
        weight = snapshot.trained[name]
        slope = central_difference(
            lambda w, name=name: loss_at(snapshot, {**snapshot.trained, name: w}, 2), weight, 1e-5
        )
        expected = (weight * slope).abs()
        torch.testing.assert_close(scores[name][mask], expected[mask], rtol=1e-6, atol=1e-8)
