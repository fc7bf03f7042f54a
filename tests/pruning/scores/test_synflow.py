"""SynFlow against products of matrices, and its conservation law."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.pruning.scores import SynFlow
from tests.pruning.scores.snapshots import perceptron, snapshot_of


def test_synflow_of_a_chain_is_the_strength_of_all_paths_through_a_weight() -> None:
    model = nn.Sequential(*[nn.Linear(a, b, bias=False) for a, b in [(2, 3), (3, 4), (4, 2)]])
    snapshot = snapshot_of(model, 2)
    a, b, c = (snapshot.initial[name].double().abs() for name in snapshot.masks)
    ones = torch.ones(2, dtype=torch.float64)
    expected = [
        torch.outer(ones @ c @ b, ones) * a,
        torch.outer(ones @ c, a @ ones) * b,
        torch.outer(ones, b @ a @ ones) * c,
    ]
    torch.testing.assert_close(list(SynFlow()(snapshot).values()), expected)


def test_synflow_is_conserved_from_layer_to_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3, bias=False)
    )
    first, last = (s.sum() for s in SynFlow()(snapshot_of(model, 3, 3, 3)).values())
    torch.testing.assert_close(first, last)


def test_synflow_of_a_deep_network_does_not_overflow() -> None:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(40)])
    scores = SynFlow()(snapshot_of(model, 64))
    assert all(score.isfinite().all() for score in scores.values())
    assert max(float(score.max()) for score in scores.values()) > torch.finfo(torch.float32).max


def test_synflow_passes_buffers_that_have_no_sign() -> None:
    model = nn.Linear(2, 3)
    model.register_buffer("flags", torch.tensor([True, False]))
    assert SynFlow()(snapshot_of(model, 2))["weight"].isfinite().all()


def test_synflow_needs_a_floating_point_input() -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)
    with pytest.raises(UserError, match="at least one batch, got none"):
        SynFlow()(replace(snapshot, batches=[]))
    with pytest.raises(UserError, match=r"floating-point input, got torch\.int64"):
        SynFlow()(replace(snapshot, batches=[(torch.ones(2, 3, dtype=torch.long),)]))


def test_an_unknown_moment_is_refused() -> None:
    with pytest.raises(UserError, match="unknown moment 'end'; choose from initial, trained"):
        SynFlow(at="end")
