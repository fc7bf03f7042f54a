"""Steps: the operations that a sparse program can hold, and how they are read from a network.

Each operation of a `torch.fx` graph that the sparse interpreter knows is parsed into a `Step`: a
convolution or linear layer, a norm (a diagonal 1x1 convolution), ReLU, a sum, a pool, flattening,
taking every n-th pixel, adding channels of zeros, concatenation, and those that do nothing in
evaluation mode. A step writes itself into a `Builder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx.node import Node

from rectified.graphs import operations
from rectified.graphs.copies import is_hooked
from rectified.graphs.operations import OPERATIONS, Trait, argument
from rectified.graphs.shapes import shape_of
from rectified.inference.sparse.builder import NO_FLOOR, Builder
from rectified.inference.sparse.layout import Value, Window


class Step:
    """One operation that a program can hold."""

    halo = 0  # zeros that it wants between the rows of an image

    def write(self, builder: Builder, *values: Value) -> Value:
        """Write the operation down, and return where its result will lie."""
        raise NotImplementedError


@dataclass
class Mix(Step):
    """A convolution, or a linear layer as a 1x1 convolution; then a sum and a ReLU, if any."""

    weight: Float[np.ndarray, "outputs inputs rows columns"]
    bias: Float[np.ndarray, " outputs"]
    window: Window = field(default_factory=Window)
    groups: int = 1
    floor: float = NO_FLOOR

    @property
    def halo(self) -> int:  # type: ignore[override]
        return self.window.halo

    def write(self, builder: Builder, *values: Value) -> Value:
        value, initial = (*values, None)[:2]
        assert value is not None
        return builder.convolution(
            value,
            self.weight,
            self.bias,
            self.window,
            groups=self.groups,
            initial=initial,
            floor=self.floor,
        )


@dataclass
class Sum(Step):
    """A value, or the sum of two, cut off below `floor`."""

    floor: float = NO_FLOOR

    def write(self, builder: Builder, *values: Value) -> Value:
        return builder.add(*values, floor=self.floor)


@dataclass
class Pool(Step):
    """Maximum or mean of windows; without a window, of the whole image."""

    window: Window | None
    mean: bool
    flat: bool = False

    def write(self, builder: Builder, *values: Value) -> Value:
        (value,) = values
        window = self.window or Window((value.height, value.width))
        pooled = builder.pool(value, window, mean=self.mean)
        return builder.flatten(pooled) if self.flat else pooled


class Flatten(Step):
    """Channels, rows and columns as one vector."""

    def write(self, builder: Builder, *values: Value) -> Value:
        return values[0] if builder.lanes > 1 else builder.flatten(values[0])


class Pass(Step):
    """Nothing."""

    def write(self, builder: Builder, *values: Value) -> Value:
        return builder.pin(values[0])


@dataclass
class Subsample(Step):
    """Some rows and columns of every channel."""

    rows: slice
    columns: slice

    def write(self, builder: Builder, *values: Value) -> Value:
        (value,) = values
        rows = range(value.height)[self.rows]
        return builder.subsample(value, rows, range(value.width)[self.columns])


@dataclass
class Concatenate(Step):
    """Channels of all values, between channels of zeros."""

    before: int = 0
    after: int = 0

    def write(self, builder: Builder, *values: Value) -> Value:
        return builder.concatenate(values, self.before, self.after)


def parse(node: Node, modules: Mapping[str, nn.Module]) -> Step | None:
    """Return what a node becomes in a program, or None if it has to stay in PyTorch.

    Args:
        node: a node of a traced network.
        modules: the network's modules by name.
    """
    if node.op == "call_module":
        layer = modules[str(node.target)]
        return None if is_hooked(layer) else parse_layer(layer)
    reader = _READERS.get(node.target) if node.op in ("call_function", "call_method") else None
    return reader(node) if reader else None


def parse_layer(layer: nn.Module) -> Step | None:
    """Return what a module becomes in a program, or None.

    Example:
        >>> parse_layer(nn.Conv2d(3, 8, 3, stride=2, padding=1)).window.stride
        (2, 2)
    """
    reader = _LAYERS.get(type(layer))
    return reader(layer) if reader else None


def _array(tensor: Tensor | None, count: int = 0) -> np.ndarray:
    if tensor is None:
        return np.zeros(count, np.float32)
    return tensor.detach().float().contiguous().numpy()


def _linear(layer: nn.Linear) -> Step:
    weight = _array(layer.weight)[:, :, None, None]
    return Mix(weight, _array(layer.bias, layer.out_features))


def _conv(layer: nn.Conv2d) -> Step | None:
    padding = _padding(layer)
    if layer.padding_mode != "zeros" or padding is None:
        return None
    window = Window(_pair(layer.kernel_size), _pair(layer.stride), padding, _pair(layer.dilation))
    bias = _array(layer.bias, layer.out_channels)
    return Mix(_array(layer.weight), bias, window, layer.groups)


def _padding(layer: nn.Conv2d) -> tuple[int, int] | None:
    """Zeros on each side; None if the two sides differ, as `"same"` makes an even kernel."""
    if not isinstance(layer.padding, str):
        return _pair(layer.padding)
    if layer.padding == "valid":
        return (0, 0)
    reach = [
        (k - 1) * d for k, d in zip(_pair(layer.kernel_size), _pair(layer.dilation), strict=True)
    ]
    return None if any(r % 2 for r in reach) else (reach[0] // 2, reach[1] // 2)


def _norm(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Step | None:
    if layer.running_mean is None or layer.running_var is None:
        return None
    scale = torch.rsqrt(layer.running_var + layer.eps)
    scale = scale if layer.weight is None else scale * layer.weight
    shift = -layer.running_mean * scale
    shift = shift if layer.bias is None else shift + layer.bias
    diagonal = _array(scale)[:, None, None, None]
    return Mix(diagonal, _array(shift), groups=layer.num_features)


def _pool(layer: nn.MaxPool2d | nn.AvgPool2d) -> Step | None:
    stride = layer.kernel_size if layer.stride is None else layer.stride
    mean = isinstance(layer, nn.AvgPool2d)
    if isinstance(layer, nn.AvgPool2d):
        plain = layer.divisor_override is None
    else:
        plain = _pair(layer.dilation) == (1, 1) and not layer.return_indices
    if layer.ceil_mode or _pair(layer.padding) != (0, 0) or not plain:
        return None
    return Pool(Window(_pair(layer.kernel_size), _pair(stride)), mean)


def _pair(size: Any) -> tuple[int, int]:
    first, second = size if isinstance(size, Sequence) else (size, size)
    return int(first), int(second)


def _whole_mean(size: Any) -> Step | None:
    return Pool(None, mean=True) if size in (1, (1, 1), [1, 1]) else None


def _flatten(start: int, end: int) -> Step | None:
    return Flatten() if start == 1 and end in (-1, 3) else None


_LAYERS: dict[type[nn.Module], Callable[[Any], Step | None]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.ReLU: lambda layer: Sum(floor=0.0),
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: lambda layer: _whole_mean(layer.output_size),
    nn.Flatten: lambda layer: _flatten(layer.start_dim, layer.end_dim),
    **dict.fromkeys(operations.modules(Trait.NOTHING), lambda layer: Pass()),
}


def _read_sum(node: Node) -> Step | None:
    terms = [term for term in node.args if isinstance(term, Node)]
    plain = len(terms) == len(node.args) == 2 and not node.kwargs
    return Sum() if plain and shape_of(terms[0]) == shape_of(terms[1]) else None


def _read_flatten(node: Node) -> Step | None:
    return _flatten(argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1))


def _read_mean(node: Node) -> Step | None:
    axes = argument(node, 1, "dim", None)
    kept = bool(argument(node, 2, "keepdim", False))
    over_places = isinstance(axes, tuple | list) and sorted(axes) in ([2, 3], [-2, -1])
    return Pool(None, mean=True, flat=not kept) if over_places else None


def _read_slices(node: Node) -> Step | None:
    index = node.args[1]
    if not isinstance(index, tuple) or len(index) != 4:
        return None
    batch, channels, rows, columns = index
    if batch != slice(None) or channels != slice(None):
        return None
    if not isinstance(rows, slice) or not isinstance(columns, slice):
        return None
    return Subsample(rows, columns)


def _read_pad(node: Node) -> Step | None:
    widths = list(argument(node, 1, "pad", ()))
    mode = argument(node, 2, "mode", "constant")
    value = argument(node, 3, "value", None)
    channels_only = len(widths) == 6 and not any(widths[:4]) and min(widths) >= 0
    if not channels_only or mode != "constant" or value:
        return None
    return Concatenate(widths[4], widths[5])


def _read_concatenation(node: Node) -> Step | None:
    images = isinstance(node.args[0], tuple | list) and len(shape_of(node)) == 4
    return Concatenate() if images and argument(node, 1, "dim", 0) in (1, -3) else None


_READERS_OF: dict[str, Callable[[Node], Step | None]] = {
    "relu": lambda node: Sum(floor=0.0),
    "add": _read_sum,
    "flatten": _read_flatten,
    "adaptive_avg_pool2d": lambda node: _whole_mean(argument(node, 1, "output_size")),
    "mean": _read_mean,
    "getitem": _read_slices,
    "pad": _read_pad,
    "cat": _read_concatenation,
    "contiguous": lambda node: Pass(),
}
_READERS = {call: reader for name, reader in _READERS_OF.items() for call in OPERATIONS[name].calls}
