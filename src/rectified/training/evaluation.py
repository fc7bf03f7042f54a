"""Evaluation: means over all examples, each counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.networks import evaluating
from rectified.training.devices import choose_device
from rectified.training.protocols import Batch


@torch.no_grad()
def evaluate(
    model: nn.Module,
    quality: Callable[[nn.Module, Batch], dict[str, Tensor]],
    batches: Iterable[Batch],
    *,
    device: str = "auto",
) -> dict[str, float]:
    """The mean of every quality over all examples, in evaluation mode.

    Args:
        model: any network; its mode is put back.
        quality: gives one value per example, by name, for a batch.
        batches: each example once; a short last batch counts by its size.
        device: auto, cpu or cuda.

    Raises:
        UserError: if there is no example.
    """
    target = choose_device(device)
    sums: dict[str, Tensor] = {}
    count = 0
    with evaluating(model.to(target)):
        for batch in batches:
            values = quality(model, tuple(v.to(target, non_blocking=True) for v in batch))
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value.double().sum()
            count += len(batch[0])
    if not count:
        raise UserError("batches must hold at least one example to evaluate, got none")
    return {name: float(value) / count for name, value in sums.items()}
