"""Magnitude: small weights are missed least."""

from __future__ import annotations

from rectified.pruning.scores.score import Score, Scores
from rectified.pruning.scores.snapshot import Snapshot


def magnitude(snapshot: Snapshot, /) -> Scores:
    """|w| after training.

    Returns:
        One tensor for each masked weight, of its shape.

    References:
        Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural
        Networks, 2015, arXiv 1506.02626.

    Example:
        >>> import torch
        >>> weights = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> magnitude(Snapshot(torch.nn.Linear(2, 1), weights, weights, masks))
        {'weight': tensor([[3., 4.]])}
    """
    return {name: snapshot.trained[name].abs() for name in snapshot.masks}


class LayerMagnitude(Score):
    """|w|, ranked within each layer: all layers lose the same share.

    Example:
        >>> LayerMagnitude().layerwise
        True
    """

    layerwise = True

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        return magnitude(snapshot)
