"""From a traced network to sparse programs: which operations can run there, and what they become.

Each operation of a `torch.fx` graph that the sparse interpreter knows is parsed into a `Step`: a
convolution or linear layer, a norm (a diagonal 1x1 convolution), ReLU, a sum, a pool, flattening,
taking every n-th pixel, adding channels of zeros, concatenation, and those that do nothing in
evaluation mode. `Segment` is a module that runs connected steps as one `Program`, written anew for
each shape of input. A sum and a ReLU behind a convolution, with no one else reading in between,
become part of it.

`fold_norms` comes first: a norm behind a convolution or linear layer is exact as another weight and
bias, w' = w s / sqrt(var + eps), so zeros stay zeros.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from rectified.errors import UserError
from rectified.pruning.sparse_program import NO_FLOOR, Builder, Program, Value, Window
from rectified.pruning.tracing import shape_of, used_once

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


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


# -- parsing -------------------------------------------------------------------------------------


def parse(node: Node, modules: Mapping[str, nn.Module]) -> Step | None:
    """Return what a node becomes in a program, or None if it has to stay in PyTorch.

    Args:
        node: a node of a traced network.
        modules: the network's modules by name.
    """
    if node.op == "call_module":
        return parse_layer(modules[str(node.target)])
    reader = _READERS.get(node.target) if node.op in ("call_function", "call_method") else None
    return reader(node) if reader else None


def parse_layer(layer: nn.Module) -> Step | None:
    """Return what a module becomes in a program, or None; see `why_dense` for the reason.

    Example:
        >>> parse_layer(nn.Conv2d(3, 8, 3, stride=2, padding=1)).window.stride
        (2, 2)
    """
    reader = _LAYERS.get(type(layer))
    return reader(layer) if reader else None


def why_dense(layer: nn.Module) -> str:
    """Say why a layer cannot run sparse; empty if it can.

    Example:
        >>> why_dense(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"))
        "padding_mode 'reflect' is not zeros"
    """
    if type(layer) not in _LAYERS:
        return f"no sparse kernel for {type(layer).__name__}"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"padding_mode {layer.padding_mode!r} is not zeros"
    if parse_layer(layer) is None:
        return f"this {type(layer).__name__} pads its two sides differently"
    return ""


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
    other = layer.divisor_override if isinstance(layer, nn.AvgPool2d) else layer.dilation not in (
        1,
        (1, 1),
    ) or layer.return_indices
    if layer.ceil_mode or _pair(layer.padding) != (0, 0) or other:
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
    **dict.fromkeys(_NOTHING, lambda layer: Pass()),
}


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _read_sum(node: Node) -> Step | None:
    first, second = node.args if len(node.args) == 2 else (None, None)
    both = isinstance(first, Node) and isinstance(second, Node) and not node.kwargs
    return Sum() if both and shape_of(first) == shape_of(second) else None


def _read_flatten(node: Node) -> Step | None:
    return _flatten(
        _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)
    )


def _read_mean(node: Node) -> Step | None:
    axes = _argument(node, 1, "dim", None)
    kept = bool(_argument(node, 2, "keepdim", False))
    over_places = isinstance(axes, tuple | list) and sorted(axes) in ([2, 3], [-2, -1])
    return Pool(None, mean=True, flat=not kept) if over_places else None


def _read_slices(node: Node) -> Step | None:
    index = node.args[1]
    plain = isinstance(index, tuple) and len(index) == 4
    plain = plain and all(isinstance(part, slice) for part in index)
    if not plain or any(part != slice(None) for part in index[:2]):
        return None
    return Subsample(index[2], index[3])


def _read_pad(node: Node) -> Step | None:
    widths = list(_argument(node, 1, "pad", ()))
    mode = _argument(node, 2, "mode", "constant")
    value = _argument(node, 3, "value", None)
    channels_only = len(widths) == 6 and not any(widths[:4]) and min(widths) >= 0
    if not channels_only or mode != "constant" or value:
        return None
    return Concatenate(widths[4], widths[5])


def _read_concatenation(node: Node) -> Step | None:
    images = isinstance(node.args[0], tuple | list) and len(shape_of(node)) == 4
    return Concatenate() if images and _argument(node, 1, "dim", 0) in (1, -3) else None


_READERS: dict[Any, Callable[[Node], Step | None]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), lambda node: Sum(floor=0.0)),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _read_sum),
    **dict.fromkeys((torch.flatten, "flatten"), _read_flatten),
    F.adaptive_avg_pool2d: lambda node: _whole_mean(_argument(node, 1, "output_size", None)),
    **dict.fromkeys((torch.mean, "mean"), _read_mean),
    operator.getitem: _read_slices,
    F.pad: _read_pad,
    torch.cat: _read_concatenation,
    "contiguous": lambda node: Pass(),
}


# -- running -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A step, the name of what it makes and the names of what it reads."""

    name: str
    step: Step
    reads: tuple[str, ...]


class Segment(nn.Module):
    """Connected steps, run as one program; inference only, float32 in the CPU's memory.

    Args:
        inputs: names of the arguments.
        lines: what is done, in order.
        outputs: names of the results; one is returned as a tensor, several as a tuple.
        threads: how many threads a call may use.
    """

    def __init__(
        self, inputs: Sequence[str], lines: Sequence[Line], outputs: Sequence[str], threads: int
    ) -> None:
        super().__init__()
        self._inputs, self._outputs, self._threads = list(inputs), list(outputs), threads
        self._lines = merged(lines, outputs)
        self._programs: dict[Any, Program] = {}

    def forward(self, *inputs: Float[Tensor, "batch ..."]) -> Any:
        first = inputs[0]
        if first.dtype != torch.float32 or first.device.type != "cpu":
            raise UserError(
                f"a sparse network takes float32 tensors on the CPU, got {first.dtype} on "
                f"{first.device}"
            )
        lanes = _lanes(first.shape[0]) if all(x.ndim == 2 for x in inputs) else 1
        key = (lanes, *(x.shape[1:] for x in inputs))
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._write(lanes, [x.shape[1:] for x in inputs])
        results = program(*inputs)
        return results[0] if len(results) == 1 else tuple(results)

    def extra_repr(self) -> str:
        return ", ".join(f"{line.name}: {type(line.step).__name__}" for line in self._lines)

    def _write(self, lanes: int, shapes: Sequence[Sequence[int]]) -> Program:
        halo = max((line.step.halo for line in self._lines), default=0)
        builder = Builder(halo=halo if lanes == 1 else 0, lanes=lanes)
        values = {
            name: builder.input(tuple(shape))
            for name, shape in zip(self._inputs, shapes, strict=True)
        }
        flat = {name: len(shape) == 1 for name, shape in zip(self._inputs, shapes, strict=True)}
        left = Counter(name for line in self._lines for name in line.reads)
        left.update(self._outputs)
        for line in self._lines:
            values[line.name] = line.step.write(builder, *(values[name] for name in line.reads))
            flat[line.name] = _makes_vector(line.step) or flat[line.reads[0]]
            left.subtract(line.reads)
            for name in set(line.reads):
                if not left[name]:
                    builder.release(values[name])
        for name in self._outputs:
            builder.output(values[name], flat[name])
        return builder.finish(self._threads)


def _makes_vector(step: Step) -> bool:
    return isinstance(step, Flatten) or (isinstance(step, Pool) and step.flat)


def _lanes(batch: int) -> int:
    """How many samples lie side by side: the fewest whole vectors that hold the batch."""
    from rectified.pruning.sparse_kernels import LANES, VECTORS

    if batch == 1:
        return 1
    vectors = 1
    while vectors < VECTORS and vectors * LANES < batch:
        vectors *= 2
    return vectors * LANES


def merged(lines: Sequence[Line], outputs: Sequence[str]) -> list[Line]:
    """Make a sum and a ReLU part of the convolution before them, where no one else reads that.

    Args:
        lines: steps in order.
        outputs: names that are read from outside.

    Returns:
        Fewer lines, which compute the same outputs.
    """
    reads = Counter(outputs)
    reads.update(name for line in lines for name in line.reads)
    done: dict[str, Line] = {}
    renamed: dict[str, str] = {}
    for line in lines:
        line = replace(line, reads=tuple(renamed.get(name, name) for name in line.reads))
        host = _host(line, done, reads)
        if host is None:
            done[line.name] = line
            continue
        assert isinstance(host.step, Mix | Sum)
        assert isinstance(line.step, Sum)
        del done[host.name]
        step = replace(host.step, floor=line.step.floor)
        others = tuple(name for name in line.reads if name != host.name)
        done[line.name] = Line(line.name, step, host.reads + others)
    return list(done.values())


def _host(line: Line, done: Mapping[str, Line], reads: Counter[str]) -> Line | None:
    """The convolution or sum that can also do this sum or ReLU."""
    if not isinstance(line.step, Sum):
        return None
    last = next(reversed(done.values()), None)
    for name in line.reads:
        host = done.get(name)
        # Only the line just before: every other operand has been computed by then.
        if host is None or host is not last or reads[name] != 1:
            continue
        unfinished = isinstance(host.step, Mix | Sum) and host.step.floor == NO_FLOOR
        room = len(line.reads) == 1 or (isinstance(host.step, Mix) and len(host.reads) == 1)
        if unfinished and room:
            return host
    return None


def layer_segment(layer: nn.Module, threads: int) -> Segment | None:
    """One layer as a segment, or None if it has to stay in PyTorch.

    Args:
        layer: a `Linear` or `Conv2d`.
        threads: how many threads a call may use.
    """
    step = parse_layer(layer)
    return step and Segment(["x"], [Line("y", step, ("x",))], ["y"], threads)


# -- whole networks ------------------------------------------------------------------------------


@torch.no_grad()
def fold_norms(traced: fx.GraphModule) -> None:
    """Fold every norm that follows a convolution or linear layer into it, in place.

    Args:
        traced: from `trace_graph`, in evaluation mode.
    """
    modules = dict(traced.named_modules())
    alone = used_once(traced)
    for node in list(traced.graph.nodes):
        layer, norm = _foldable(node, modules, alone)
        if layer is None or norm is None:
            continue
        before = node.args[0]
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        traced.set_submodule(str(before.target), fuse(layer, norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.recompile()


def _foldable(
    node: Node, modules: Mapping[str, nn.Module], alone: set[str]
) -> tuple[Any, Any] | tuple[None, None]:
    norm = modules.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(norm, _NORMS) or norm.running_var is None:
        return None, None
    before = node.args[0]
    called = isinstance(before, Node) and before.op == "call_module" and len(before.users) == 1
    if not called or not {str(before.target), str(node.target)} <= alone:
        return None, None
    layer = modules[str(before.target)]
    if type(layer) is nn.Conv2d or (type(layer) is nn.Linear and len(shape_of(before)) == 2):
        return layer, norm
    return None, None


def segmented(traced: fx.GraphModule, dense: set[str], threads: int) -> nn.Module:
    """Run every stretch of known operations as a program, and the others as before.

    Args:
        traced: from `trace_graph`, norms folded.
        dense: names of layers that stay in PyTorch.
        threads: how many threads a call may use.

    Returns:
        A module that computes what `traced` does.
    """
    from torch.fx.passes.split_module import split_module

    parts = _parts(traced, dense)
    split = split_module(traced, traced, lambda node: parts[node][0])
    programs = {f"submod_{number}" for number, known in parts.values() if known}
    for name, part in list(split.named_children()):
        if name in programs:
            assert isinstance(part, fx.GraphModule)
            split.set_submodule(name, graph_segment(part, threads))
    split.recompile()
    return _unwrapped(split)


def _unwrapped(split: fx.GraphModule) -> nn.Module:
    """The one segment of a network that is nothing else."""
    nodes = list(split.graph.nodes)
    calls = [node for node in nodes if node.op == "call_module"]
    inputs = [node for node in nodes if node.op == "placeholder"]
    result = nodes[-1].args[0]
    if len(calls) == 1 and len(nodes) == len(inputs) + 2 and result is calls[0]:
        segment = split.get_submodule(str(calls[0].target))
        if isinstance(segment, Segment) and list(calls[0].args) == inputs:
            return segment
    return split


def _parts(traced: fx.GraphModule, dense: set[str]) -> dict[Node, tuple[int, bool]]:
    """Number the stretches of nodes in running order: in a program or not, images or vectors."""
    modules = dict(traced.named_modules())
    parts: dict[Node, tuple[int, bool]] = {}
    number, previous = 0, None
    for node in traced.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        known = str(node.target) not in dense and _known(node, modules)
        kind = (known, known and _is_of_vectors(node))
        number += kind != previous and previous is not None
        previous = kind
        parts[node] = (number, known)
    return parts


def _known(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    tensors = [node, *node.all_input_nodes]
    floats = all(
        getattr(one.meta.get("tensor_meta"), "dtype", None) == torch.float32 for one in tensors
    )
    ranks = {len(shape_of(one)) for one in tensors}
    step = parse(node, modules) if floats and ranks <= {2, 4} else None
    if isinstance(step, Mix):
        layer = modules.get(str(node.target))
        flat = isinstance(layer, nn.Linear | nn.BatchNorm1d)
        return ranks == ({2} if flat else {4})
    return step is not None


def _is_of_vectors(node: Node) -> bool:
    """Whether a batch of more than one would lie side by side here."""
    tensors = [node, *node.all_input_nodes]
    return all(len(shape_of(one)) == 2 for one in tensors) and shape_of(node)[0] > 1


def graph_segment(part: fx.GraphModule, threads: int) -> Segment:
    """A graph of known operations as a segment.

    Args:
        part: every node of it parses.
        threads: how many threads a call may use.
    """
    modules = dict(part.named_modules())
    inputs, lines, outputs = [], [], []
    for node in part.graph.nodes:
        if node.op == "placeholder":
            inputs.append(node.name)
        elif node.op == "output":
            outputs = [one.name for one in node.all_input_nodes]
        else:
            step = parse(node, modules)
            assert step is not None
            lines.append(Line(node.name, step, tuple(n.name for n in node.all_input_nodes)))
    return Segment(inputs, lines, outputs, threads)
