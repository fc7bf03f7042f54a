"""Operations: what the calls in a traced network do to channels.

A call's *kind* is the type of a module, a function, or the name of a tensor's method. Kinds are
known by lists: those that work on every element by itself, those that work on the axes behind
(batch, channel), those that only rearrange. A kind on no list may do anything.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.node import Node

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
TRANSFORMERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_MODULES = """
    ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Sigmoid Tanh Hardswish Hardsigmoid Hardtanh
    Softplus Softsign LogSigmoid Threshold Identity Dropout Dropout1d Dropout2d Dropout3d
"""
_FUNCTIONS = """
    relu relu_ relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardswish hardsigmoid
    hardtanh softplus threshold clamp clip abs exp square neg add sub mul div
"""
_METHODS = "sigmoid_ tanh_ clamp_ add_ sub_ mul_ div_ clone contiguous detach"
_OPERATORS = (operator.add, operator.sub, operator.mul, operator.truediv, operator.neg)
_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
ELEMENTWISE = {
    *(getattr(nn, name) for name in _MODULES.split()),
    *(getattr(torch, name) for name in _FUNCTIONS.split() if hasattr(torch, name)),
    *(getattr(F, name) for name in _FUNCTIONS.split() if hasattr(F, name)),
    *(*_FUNCTIONS.split(), *_METHODS.split()),
    *(*_OPERATORS, *_IN_PLACE_OPERATORS, F.dropout),
}

_POOLS = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
_PADS = ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad")
_POOL_FUNCTIONS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
_SPATIAL_AXES = {
    **{getattr(nn, f"{name}{axes}d"): axes for name in _POOLS + _PADS for axes in (1, 2, 3)},
    **{getattr(F, f"{name}{axes}d"): axes for name in _POOL_FUNCTIONS for axes in (1, 2, 3)},
}
_INTERPOLATIONS = {nn.Upsample, F.interpolate}
_REDUCTIONS = {torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"}

_WITH_SIZES = {torch.reshape, "reshape", "view"}
RESHAPES = {
    *(nn.Flatten, torch.flatten, torch.squeeze, torch.unsqueeze),
    *("flatten", "squeeze", "unsqueeze", *_WITH_SIZES),
}
CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}
_SHAPE_QUERIES = {"size", "dim", "shape", "ndim", "device", "dtype"}


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def asks_shape(node: Node) -> bool:
    """Whether a node only asks for sizes, which a smaller network answers by itself."""
    if node.op == "call_method":
        return node.target in _SHAPE_QUERIES
    return node.target is getattr and node.args[1] in _SHAPE_QUERIES


def keeps_channels_apart(node: Node, kind: Any, axis: int, dimensions: int) -> bool:
    """Whether every output channel depends on that channel of the inputs and on no other.

    Args:
        node: the call.
        kind: what it calls.
        axis: the axis of its first input that holds the channels.
        dimensions: how many axes that input has.
    """
    if kind in ELEMENTWISE:
        return kind is not F.dropout or not node.kwargs["training"]
    if kind in _REDUCTIONS:
        return min(_reduced_axes(node, dimensions)) > axis
    if kind is operator.getitem:
        return _takes_all(node.args[1], axis)
    return axis == 1 and _is_spatial(node, kind, dimensions - 2)


def _is_spatial(node: Node, kind: Any, axes: int) -> bool:
    if kind in NORMS:
        return True
    if kind is F.pad:
        return len(argument(node, 1, "pad")) <= 2 * axes
    return axes > 0 if kind in _INTERPOLATIONS else _SPATIAL_AXES.get(kind) == axes


def _reduced_axes(node: Node, dimensions: int) -> list[int]:
    axes = argument(node, 1, "dim")
    if axes is None:
        return [0]
    return [axis % dimensions for axis in ([axes] if isinstance(axes, int) else axes)]


def _takes_all(index: Any, axis: int) -> bool:
    """Whether indexing takes everything along the axes up to this one."""
    entries = index if isinstance(index, tuple) else (index,)
    ahead, behind = entries[: axis + 1], entries[axis + 1 :]
    is_whole = len(ahead) == axis + 1 and all(entry == slice(None) for entry in ahead)
    return is_whole and all(isinstance(entry, slice | int) for entry in behind)


def axis_after_reshape(
    node: Node, kind: Any, axis: int, shape: tuple[int, ...], reshaped: tuple[int, ...]
) -> int | None:
    """Where an axis, perhaps merged with axes behind it, stands after a reshape.

    None if it stands nowhere, or if the call gives the size of that axis as a number, which would
    be wrong after a removal.
    """
    ahead = math.prod(shape[:axis])
    for new_axis in range(1, len(reshaped)):
        is_same_start = math.prod(reshaped[:new_axis]) == ahead
        if is_same_start and reshaped[new_axis] % shape[axis] == 0:
            return None if kind in _WITH_SIZES and _names_size(node, new_axis) else new_axis
    return None


def _names_size(node: Node, axis: int) -> bool:
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    return axis >= len(sizes) or bool(isinstance(sizes[axis], int) and sizes[axis] != -1)


def pads_with_zeros(module: nn.Module) -> bool:
    """Whether a layer's outputs at the border see zeros instead of its input.

    Example:
        >>> pads_with_zeros(nn.Conv2d(1, 1, 3, padding=1)), pads_with_zeros(nn.Conv2d(1, 1, 3))
        (True, False)
    """
    if not isinstance(module, CONVOLUTIONS) or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding == "same" and max(module.kernel_size) > 1
    return any(width > 0 for width in module.padding)
