"""GraSP against the full Hessian."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.pruning.scores import GraSP
from tests.pruning.scores.snapshots import perceptron, snapshot_of


def test_grasp_is_the_weight_times_the_full_hessian_times_the_gradient() -> None:
    snapshot = snapshot_of(perceptron(2, 3, 3), 2)
    kept = {name: mask.nonzero(as_tuple=True) for name, mask in snapshot.masks.items()}
    sizes = [len(indices[0]) for indices in kept.values()]

    def cooled_loss(flat: Tensor) -> Tensor:
        weights = dict(snapshot.initial)
        for (name, indices), part in zip(kept.items(), flat.split(sizes), strict=True):
            weights[name] = torch.zeros_like(weights[name]).index_put(indices, part)
        logits = [
            torch.func.functional_call(snapshot.model, weights, batch[0]) / 200
            for batch in snapshot.batches
        ]
        losses = [F.cross_entropy(z, b[1]) for z, b in zip(logits, snapshot.batches, strict=True)]
        return torch.stack(losses).mean()

    flat = torch.cat([snapshot.initial[name][indices] for name, indices in kept.items()])
    gradient = torch.autograd.functional.jacobian(cooled_loss, flat)
    hessian = torch.autograd.functional.hessian(cooled_loss, flat)
    scores = GraSP(batches=3)(snapshot)
    actual = torch.cat([scores[name][indices] for name, indices in kept.items()])
    torch.testing.assert_close(actual, flat * (hessian @ gradient), rtol=1e-9, atol=0)


def test_grasp_needs_a_tensor_from_the_model() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    with pytest.raises(UserError, match="returns a tensor, got tuple"):
        GraSP()(snapshot_of(Pair(3, 3), 3))


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(UserError, match=r"temperature must be positive, got 0\.0"):
        GraSP(temperature=0.0)
