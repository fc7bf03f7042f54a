"""LAMP: magnitudes that may be compared between layers."""

from __future__ import annotations

import torch
from torch import Tensor

from rectified.pruning.scores.score import Scores
from rectified.pruning.scores.snapshot import Snapshot


def lamp(snapshot: Snapshot, /) -> Scores:
    """w^2 over the sum of w^2 of all kept weights of the layer that are at least as large.

    One global ranking of these gives each layer its own density. The largest weight of each layer
    has exactly 1, so a layer is emptied only when nothing but such weights is left. Of equal
    weights the first by position has the lowest score.

    References:
        Lee, Park, Mo, Ahn, Shin: Layer-adaptive Sparsity for the Magnitude-based Pruning, 2020,
        arXiv 2010.07611, eq. 3.

    Example:
        >>> weights = {"weight": torch.tensor([[1.0, -2.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> lamp(Snapshot(torch.nn.Linear(2, 1), weights, weights, masks))["weight"]
        tensor([[0.2000, 1.0000]], dtype=torch.float64)
    """
    return {name: _lamp(snapshot.trained[name], mask) for name, mask in snapshot.masks.items()}


def _lamp(weight: Tensor, mask: Tensor) -> Tensor:
    squares = weight.double().square()
    # Pruned weights sort before kept zeros, so that the last in order is always a kept one.
    order = squares.masked_fill(~mask, -1.0).flatten().argsort(stable=True)
    ascending = (squares * mask).flatten()[order]
    # Summed from the large end: a total minus partial sums would lose the largest weight's ratio.
    at_least = ascending.flip(0).cumsum(0).flip(0)
    ratios = torch.where(at_least > 0, ascending / at_least, 0.0)
    ratios[-1:] = 1.0
    return torch.empty_like(ratios).scatter_(0, order, ratios).view_as(weight)
