"""The weights of a network by name, and the masked ones among them set to zero.

A mask is a boolean tensor beside a weight, `True` where the weight is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.graphs.copies import bare


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its name in the bare network, as in that one's `state_dict`.

    Example:
        >>> list(named_weights(nn.DataParallel(nn.Linear(2, 3))))
        ['weight', 'bias']
    """
    return dict(bare(model).named_parameters())


@torch.no_grad()
def apply_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of `model` to zero, in place.

    Raises:
        UserError: if a mask names a parameter that the model does not have, or has another shape.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> apply_(model, {"weight": torch.tensor([[True, False]])})
        >>> (model.weight == 0).tolist()
        [[False, True]]
    """
    multiply_(weights_and_masks(model, masks))


def weights_and_masks(
    model: nn.Module, masks: Mapping[str, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Every masked weight, and its mask as factors of 0 and 1.

    Raises:
        UserError: as `apply_`.
    """
    weights = named_weights(model)
    for name, mask in masks.items():
        if name not in weights or weights[name].shape != mask.shape:
            has = tuple(weights[name].shape) if name in weights else "no such parameter"
            raise UserError(f"mask {name!r} has shape {tuple(mask.shape)}, the model has {has}")
    held: list[Tensor] = [weights[name] for name in masks]
    # in the memory order of the weights, which the fused operation needs
    return held, [torch.empty_like(w).copy_(masks[n]) for n, w in zip(masks, held, strict=True)]


@torch.no_grad()
def multiply_(pairs: tuple[list[Tensor], list[Tensor]]) -> None:
    """Multiply weights by their factors, in one fused operation."""
    weights, factors = pairs
    if weights:
        torch._foreach_mul_(weights, factors)
