"""Derivatives of the loss with respect to the kept weights of a snapshot.

g is the gradient of the mean loss over a few training batches, in training mode, averaged over
processes where `torch.distributed` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.pruning.scores.score import Scores
from rectified.pruning.scores.snapshot import Snapshot

LossToTensors = Callable[[Float[Tensor, ""]], Scores]


def check_batches(batches: int) -> None:
    """Refuse fewer than one batch.

    Raises:
        UserError: if there are.
    """
    if batches < 1:
        raise UserError(f"batches must be at least 1, got {batches}")


def masked_weights(network: nn.Module, snapshot: Snapshot) -> dict[str, Tensor]:
    """The parameters of a network that a snapshot's masks are for."""
    return {name: network.get_parameter(name) for name in snapshot.masks}


def gradient(weights: Mapping[str, Tensor], *, create_graph: bool = False) -> LossToTensors:
    """Loss -> its gradient by name; zero where the loss does not depend on a weight."""

    def slopes(loss: Float[Tensor, ""]) -> Scores:
        tangent = torch.autograd.grad(
            loss, list(weights.values()), create_graph=create_graph, materialize_grads=True
        )
        return dict(zip(weights, tangent, strict=True))

    return slopes


def hessian_product(weights: Mapping[str, Tensor], along: Scores) -> LossToTensors:
    """Loss -> its Hessian times a direction, by differentiating the slope along it."""

    def product(loss: Float[Tensor, ""]) -> Scores:
        slopes = gradient(weights, create_graph=True)(loss)
        slope_along = torch.stack([(slopes[name] * along[name]).sum() for name in weights])
        return gradient(weights)(slope_along.sum())

    return product


def mean_over_batches(
    snapshot: Snapshot, network: nn.Module, batches: int, derivative: LossToTensors
) -> Scores:
    """The mean of a derivative of the loss over the first batches and all processes.

    Args:
        snapshot: has the batches and the objective.
        network: a copy of its model, whose weights the derivative is of.
        batches: how many to use, the first ones.
        derivative: loss -> tensors by name.

    Raises:
        UserError: if the snapshot has no objective or no batch.
    """
    if snapshot.objective is None:
        raise UserError("objective must be given for a score that uses gradients, got None")
    devices = {value.device for value in network.parameters() if value.is_cuda}
    sums: Scores = {}
    used = 0
    # Dropout, or an objective with noise, draws from the global state: it is put back.
    with torch.random.fork_rng(devices):
        for batch in islice(snapshot.batches, batches):
            used += 1
            for name, value in derivative(snapshot.objective(network, batch)).items():
                sums[name] = sums[name] + value if name in sums else value
    if not used:
        raise UserError("batches must hold at least one batch, got none")
    return reduce_across_processes({name: value / used for name, value in sums.items()})


def reduce_across_processes(values: Scores) -> Scores:
    """The mean over all processes, where `torch.distributed` runs; else the values themselves.

    Args:
        values: name -> tensor, of the same names and shapes on every process.

    Example:
        >>> reduce_across_processes({"weight": torch.tensor([1.0])})
        {'weight': tensor([1.])}
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values
    means = {}
    for name, value in values.items():
        means[name] = value / dist.get_world_size()
        dist.all_reduce(means[name])
    return means
