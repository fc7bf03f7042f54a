"""SNIP: connection sensitivity, before any training."""

from __future__ import annotations

from dataclasses import dataclass

from rectified.pruning.scores.gradient import Gradient


@dataclass(frozen=True)
class SNIP(Gradient):
    """|dL/dm| = |w * g| before training: how much the loss feels a mask m on the weight at m = 1.

    The paper sums over batches and divides by the total; both leave the ranking as it is here.

    References:
        Lee, Ajanthan, Torr: SNIP: Single-shot Network Pruning based on Connection Sensitivity,
        2018, arXiv 1810.02340, eq. 5.

    Example:
        >>> import torch
        >>> from rectified.pruning.scores import Snapshot
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> start = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> def objective(model, batch):
        ...     return model(batch[0]).mean()
        >>> batches = [(torch.tensor([[1.0, 0.5]]),)]
        >>> SNIP()(Snapshot(model, start, start, masks, batches, objective))
        {'weight': tensor([[3., 2.]])}
    """

    at: str = "initial"
