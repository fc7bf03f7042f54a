"""Random scores are uniform, and go on where they stood."""

from __future__ import annotations

import torch
from torch import nn

from rectified.pruning.scores import Random, Snapshot


def test_random_scores_are_uniform_and_without_ties() -> None:
    masks = {"w": torch.ones(100, 100, dtype=torch.bool)}
    draws = Random(torch.Generator().manual_seed(0))(Snapshot(nn.Identity(), {}, {}, masks))["w"]
    assert draws.unique().numel() == draws.numel()
    counts = torch.histc(draws, 10, 0.0, 1.0)
    assert ((counts - 1000).square() / 1000).sum() < 27.9  # chi-squared, 9 degrees, p = 0.001


def test_a_restored_generator_draws_the_same_scores() -> None:
    masks = {"w": torch.ones(3, dtype=torch.bool)}
    score = Random(torch.Generator().manual_seed(0))
    before = score.state
    first = score(Snapshot(nn.Identity(), {}, {}, masks))["w"]
    score.restore(before)
    assert torch.equal(score(Snapshot(nn.Identity(), {}, {}, masks))["w"], first)
