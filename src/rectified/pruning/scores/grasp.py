"""GraSP: weights that the flow of gradients lives on, before any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rectified.errors import UserError, choose
from rectified.pruning.scores.derivatives import (
    check_batches,
    gradient,
    hessian_product,
    masked_weights,
    mean_over_batches,
)
from rectified.pruning.scores.score import Score, Scores
from rectified.pruning.scores.snapshot import MOMENTS, Snapshot, network_at


@dataclass(frozen=True)
class GraSP(Score):
    """w * (H g): how much the squared gradient norm, so the speed of training, lives on w.

    H is the Hessian over the kept weights and g their gradient, both of the loss on the
    outputs divided by a temperature. The largest are kept. (The paper writes -w * (H g) and removes
    the largest: the same ranking.)

    Args:
        batches: number of training batches (the first ones) to average over.
        temperature: the model's outputs (logits) are divided by it, > 0.
        at: whose weights: before (`initial`) or after (`trained`) the training.

    Raises:
        UserError: if `batches` is below 1, `temperature` not positive or `at` neither; when called,
            if the snapshot has no objective or no batch, or the model returns no tensor.

    References:
        Wang, Zhang, Grosse: Picking Winning Tickets Before Training by Preserving Gradient Flow,
        2020, arXiv 2002.07376, eq. 8 and alg. 2.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False)
        >>> start = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> def objective(model, batch):  # L = w0^2 / 2, so g = w0, H = 1 and w (H g) = 9
        ...     return model(batch[0]).square().mean() / 2
        >>> batches = [(torch.tensor([[1.0, 0.0]]),)]
        >>> GraSP(temperature=1.0)(Snapshot(model, start, start, masks, batches, objective))
        {'weight': tensor([[9., -0.]])}
    """

    batches: int = 1
    temperature: float = 200.0
    at: str = "initial"

    def __post_init__(self) -> None:
        check_batches(self.batches)
        choose("moment", self.at, MOMENTS)
        if not self.temperature > 0:
            raise UserError(f"temperature must be positive, got {self.temperature}")

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        network = network_at(snapshot, self.at)
        network.register_forward_hook(self._cool)
        weights = masked_weights(network, snapshot)
        slopes = mean_over_batches(snapshot, network, self.batches, gradient(weights))
        # Pruned weights cannot move, so the gradient flows through kept ones only.
        along = {name: slope * snapshot.masks[name] for name, slope in slopes.items()}
        product = hessian_product(weights, along)
        bent = mean_over_batches(snapshot, network, self.batches, product)
        return {name: weights[name].detach() * bent[name] for name in weights}

    def _cool(self, _network: nn.Module, _inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise UserError(
                f"GraSP needs a model that returns a tensor, got {type(output).__name__}"
            )
        return output / self.temperature
