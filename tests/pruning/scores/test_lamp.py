"""LAMP against its definition and the authors' code."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from rectified.pruning.scores import Snapshot, lamp
from rectified.pruning.threshold import drop_smallest
from tests.pruning.scores.snapshots import residual


def test_lamp_is_its_definition_term_by_term() -> None:
    snapshot = residual()
    scores = lamp(snapshot)
    for name, mask in snapshot.masks.items():
        kept = snapshot.trained[name][mask].double() ** 2
        expected = torch.stack([w / kept[kept >= w].sum() for w in kept])
        torch.testing.assert_close(scores[name][mask], expected)


def test_lamp_keeps_one_weight_in_every_layer() -> None:
    snapshot = residual()
    count = sum(int(mask.sum()) for mask in snapshot.masks.values()) - len(snapshot.masks)
    masks = drop_smallest(lamp(snapshot), snapshot.masks, count)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]


def lamp_of(weights: list[float], mask: list[int]) -> list[float]:
    trained = {"w": torch.tensor(weights)}
    masks = {"w": torch.tensor(mask, dtype=torch.bool)}
    return lamp(Snapshot(nn.Identity(), trained, trained, masks))["w"].tolist()


def test_lamp_of_equal_weights_grows_with_position_to_one() -> None:
    assert lamp_of([2.0, -2.0, 2.0, 2.0], [1, 1, 1, 1]) == [1 / 4, 1 / 3, 1 / 2, 1.0]


def test_lamp_of_zeros_is_one_for_the_last_kept_weight() -> None:
    assert lamp_of([0.0, 0.0, 0.0], [1, 1, 0]) == [0.0, 1.0, 0.0]


def test_lamp_of_a_long_layer_ends_at_exactly_one() -> None:
    weight = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    masks = {"w": torch.ones(10**6, dtype=torch.bool)}
    assert lamp(Snapshot(nn.Identity(), {"w": weight}, {}, masks))["w"].max() == 1.0


def test_lamp_agrees_with_the_authors_code(
    oracle: dict[str, np.ndarray], oracle_snapshot: Snapshot
) -> None:
    for name, score in lamp(oracle_snapshot).items():
        theirs = torch.from_numpy(oracle[f"lamp/score/{name}"]).double()
        torch.testing.assert_close(score, theirs, rtol=2e-4, atol=1e-9)  # theirs is in float32
