"""SynFlow: weights on strong paths through the network, found without data or training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rectified.errors import UserError, choose
from rectified.pruning.scores.derivatives import gradient, masked_weights
from rectified.pruning.scores.score import Score, Scores
from rectified.pruning.scores.snapshot import MOMENTS, Snapshot, first_batch, network_at


@dataclass(frozen=True)
class SynFlow(Score):
    """w * dR/dw, where R is the sum of the outputs for an input of ones and all weights |w|.

    R is the total strength of all paths through a weight, so the score needs no data and no
    training. A layer's scores sum to the same R in every layer (without biases), so that no layer
    is emptied, if pruning goes in many small steps: `rounds` tells the cycle how many.

    As in the authors' code the absolute value is taken of the whole `state_dict`, buffers too, and
    norms use their running statistics. Paths multiply over layers, so all is computed in float64.

    Args:
        at: whose weights: before (`initial`) or after (`trained`) the training.

    Raises:
        UserError: if `at` is neither; when called, if the snapshot has no batch (its first tensor
            gives the input's shape) or the input is not floating-point.

    References:
        Tanaka, Kunin, Yamins, Ganguli: Pruning neural networks without any data by iteratively
        conserving synaptic flow, 2020, arXiv 2006.05467, eq. 5 and alg. 1.

    Example:
        >>> from torch.nn import Linear, Sequential
        >>> model = Sequential(Linear(1, 2, bias=False), Linear(2, 1, bias=False))
        >>> up, down = torch.tensor([[1.0], [-2.0]]), torch.tensor([[3.0, 4.0]])
        >>> start = {"0.weight": up, "1.weight": down}
        >>> masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in start.items()}
        >>> SynFlow()(Snapshot(model, start, start, masks, [(torch.zeros(4, 1),)]))["1.weight"]
        tensor([[3., 8.]], dtype=torch.float64)
    """

    rounds = 100
    at: str = "initial"

    def __post_init__(self) -> None:
        choose("moment", self.at, MOMENTS)

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        example = first_batch(snapshot)[0]
        if not example.is_floating_point():
            raise UserError(f"SynFlow needs a floating-point input, got {example.dtype}")
        network = network_at(snapshot, self.at).double().eval()
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.abs_()
        weights = masked_weights(network, snapshot)
        ones = torch.ones_like(example[:1], dtype=torch.float64)
        slopes = gradient(weights)(network(ones).sum())
        return {name: (weights[name].detach() * slopes[name]).abs() for name in weights}
