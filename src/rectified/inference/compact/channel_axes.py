"""The axis of the channels: where it stands behind a call, and which calls keep channels apart.

What a call is, whichever way it is spelled, stands in `rectified.graphs.operations`. A call of
another kind may do anything.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx.node import Node

from rectified.graphs.operations import (
    CONVOLUTIONS,
    NORMS,
    OPERATIONS,
    SIZES,
    Trait,
    argument,
    kinds,
    kinds_of,
)

_SPATIAL_AXES = {kind: one.axes for one in OPERATIONS.values() if one.axes for kind in one.kinds}
_INTERPOLATIONS = kinds_of("interpolate")
_REDUCTIONS = kinds_of("mean", "sum", "amax", "amin")
_WITH_SIZES = kinds_of("reshape", "view")
_SHAPE_QUERIES = {*SIZES, "device", "dtype"}


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
    if kind in kinds(Trait.ELEMENTWISE):
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
    """The place after a reshape of an axis, perhaps merged with axes behind it.

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
