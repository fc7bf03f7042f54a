"""Global gradient: what the loss would change by, to first order, without a weight."""

from __future__ import annotations

from dataclasses import dataclass

from rectified.errors import choose
from rectified.pruning.scores.derivatives import (
    check_batches,
    gradient,
    masked_weights,
    mean_over_batches,
)
from rectified.pruning.scores.score import Score, Scores
from rectified.pruning.scores.snapshot import MOMENTS, Snapshot, network_at


@dataclass(frozen=True)
class Gradient(Score):
    """|w * g|, the first-order change of the loss when w is removed ("global gradient").

    The absolute value is taken after averaging g over batches, as in shrinkbench, whose
    GlobalMagGrad uses one batch.

    Args:
        batches: number of training batches (the first ones) to average over.
        at: whose weights: after (`trained`) or before (`initial`) the training.

    Raises:
        UserError: if `batches` is below 1 or `at` is neither; when called, if the snapshot has no
            objective or no batch.

    References:
        Mozer, Smolensky: Skeletonization, NIPS 1988 (relevance); Blalock et al.: What is the State
        of Neural Network Pruning?, 2020, arXiv 2003.03033 (global gradient).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> weights = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> def objective(model, batch):
        ...     return model(batch[0]).mean()
        >>> batches = [(torch.tensor([[1.0, 0.5]]),)]
        >>> Gradient()(Snapshot(model, weights, weights, masks, batches, objective))
        {'weight': tensor([[3., 2.]])}
    """

    batches: int = 1
    at: str = "trained"

    def __post_init__(self) -> None:
        check_batches(self.batches)
        choose("moment", self.at, MOMENTS)

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        network = network_at(snapshot, self.at)
        weights = masked_weights(network, snapshot)
        slopes = mean_over_batches(snapshot, network, self.batches, gradient(weights))
        return {name: (weights[name].detach() * slopes[name]).abs() for name in weights}
