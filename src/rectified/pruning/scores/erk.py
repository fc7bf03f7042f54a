"""ERK: layers get the densities of Erdos-Renyi graphs, any score ranks within them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rectified.pruning.scores.magnitude import magnitude
from rectified.pruning.scores.score import Score, ScoreFunction, Scores
from rectified.pruning.scores.snapshot import Snapshot


@dataclass(frozen=True)
class ERK(Score):
    """A layer's weights by their rank, so that a global cut has Erdos-Renyi-kernel densities.

    ERK keeps min(1, c * S_l / N_l) of each layer l, where N_l is the number of its weights and
    S_l = n_in + n_out + k_h + k_w the sum of its shape; c is the same in all layers. That is the
    weights of rank r <= c * S_l. So S_l / r is a global score, and a cut at any density is ERK's,
    to less than one weight per layer; no density needs to be known beforehand.

    Args:
        within: the score that ranks the weights of each layer.

    References:
        Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, 2020, arXiv 1911.11134, sec. 3;
        Mocanu et al.: Scalable training of artificial neural networks with adaptive sparse
        connectivity inspired by network science, 2018, arXiv 1707.04780.

    Example:
        >>> weights = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> ERK()(Snapshot(torch.nn.Linear(2, 1), weights, weights, masks))
        {'weight': tensor([[1.5000, 3.0000]], dtype=torch.float64)}
    """

    within: ScoreFunction = magnitude

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        scores = self.within(snapshot)
        return {name: _by_rank(scores[name], mask) for name, mask in snapshot.masks.items()}


def _by_rank(score: Tensor, mask: Tensor) -> Tensor:
    """Sum of the shape over the rank from the top, among kept weights; +inf stays."""
    order = score.masked_fill(~mask, -math.inf).flatten().argsort(stable=True)
    ranks = torch.arange(score.numel(), 0, -1, dtype=torch.float64, device=score.device)
    by_rank = torch.empty_like(ranks).scatter_(0, order, sum(score.shape) / ranks)
    return by_rank.view_as(score).masked_fill(score == math.inf, math.inf)
