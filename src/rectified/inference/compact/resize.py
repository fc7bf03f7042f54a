"""Resizing: layers and whole networks with fewer channels than they were built with.

The tensors of a linear layer, a convolution or a batch norm say how many channels it has, so a
compact network needs no file format of its own: its `state_dict` is enough to give a fresh network
of the same architecture its sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from rectified.errors import UserError
from rectified.graphs.copies import plain_copy
from rectified.graphs.operations import CONVOLUTIONS, NORMS


def resize(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` with the sizes and the weights of a compact `state_dict`.

    So a compact network is stored as plain tensors, and loaded without a pickle.

    Args:
        model: a network of the architecture that was compacted, at its full size.
        state_dict: what the result of `rectified.inference.compact` holds.

    Raises:
        UserError: if a tensor is missing, unknown, or of a shape that no compaction makes.

    Example:
        >>> import torch
        >>> narrow = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
        >>> resize(nn.Linear(4, 3), narrow)
        Linear(in_features=3, out_features=2, bias=True)
    """
    resized = plain_copy(model)
    for path, module in resized.named_modules():
        if type(module) in (nn.Linear, *CONVOLUTIONS, *NORMS):
            _resize_(module, f"{path}." if path else "", state_dict)
    try:
        resized.load_state_dict(state_dict)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"state_dict does not fit: {reason}") from error
    return resized


def _resize_(module: Any, prefix: str, state_dict: Mapping[str, Tensor]) -> None:
    if module.bias is None and module.weight is not None and f"{prefix}bias" in state_dict:
        module.bias = nn.Parameter(module.weight.new_empty(len(module.weight)))

    def stored(name: str, tensor: Tensor) -> Tensor:
        shape = state_dict.get(f"{prefix}{name}", tensor).shape
        is_part = len(shape) == tensor.ndim and shape[2:] == tensor.shape[2:]
        if not is_part or any(new > old for new, old in zip(shape, tensor.shape, strict=True)):
            raise UserError(
                f"state_dict[{prefix + name!r}] must be a part of {tuple(tensor.shape)}, "
                f"got {tuple(shape)}"
            )
        return tensor.new_empty(shape)

    replace_tensors_(module, stored)


def replace_tensors_(module: Any, new: Callable[[str, Tensor], Tensor]) -> None:
    """Replace each parameter and buffer of one layer by `new(name, tensor)`, and its sizes."""
    for name, tensor in list(module.named_parameters()):
        parameter = new(name, tensor.detach())
        setattr(module, name, nn.Parameter(parameter, requires_grad=tensor.requires_grad))
    for name, tensor in list(module.named_buffers()):
        setattr(module, name, new(name, tensor))
    _fit_attributes_(module)


def _fit_attributes_(module: Any) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, CONVOLUTIONS):
        if module.groups == module.in_channels == module.out_channels:  # depthwise
            module.groups = len(module.weight)
        module.out_channels = len(module.weight)
        module.in_channels = module.weight.shape[1] * module.groups
    else:
        sizes = [len(tensor) for tensor in module.state_dict().values() if tensor.ndim]
        module.num_features = sizes[0] if sizes else module.num_features
