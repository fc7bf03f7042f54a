"""The channel graph: which channels of a network belong together, and which carry nothing.

Along the channel axis of every tensor in a traced network there are

    classes     an integer a channel; channels of one class can only be removed together, because
                a residual sum, a norm or a depthwise convolution ties them
    constants   the value of a channel that is the same for every input and at every position,
                NaN for a channel that varies

A layer that mixes channels (`Linear`, `Conv`) begins new classes at its outputs. Its output o
*reads* input i if some weight between them is not zero and the input's constant c cannot be moved
into the bias of o. It can where b_o + sum(w_oi) c is exact at every position: in a linear layer and
in a convolution without zero padding for every c, with zero padding only for c = 0. An output
that reads nothing is constant.

Operations that keep channels apart (activations, pools, norms, sums of two tensors) pass classes
on, and their constants are found by running the operation itself on a constant input: one rule
for border effects, running statistics and formulas. Flattening repeats a class for its block of
columns, concatenation joins. Any other operation is a barrier: the classes it touches are pinned,
that is, they stay, and the reason is kept.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn
from torch.fx.node import Node, map_arg

from rectified.errors import UserError, choose
from rectified.pruning.sites import activation_kind
from rectified.pruning.tracing import caller_of, shape_of, trace_graph, used_once

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_MODULES = (
    "ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Sigmoid Tanh Hardswish Hardsigmoid Hardtanh "
    "Softplus Softsign LogSigmoid Threshold Identity Dropout Dropout1d Dropout2d Dropout3d"
).split()
_FUNCTIONS = (
    "relu relu_ relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardswish hardsigmoid "
    "hardtanh softplus threshold clamp clip abs exp square neg add sub mul div"
).split()
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
_ELEMENTWISE = {
    *(getattr(nn, name) for name in _MODULES),
    *(getattr(place, name) for place in (torch, F) for name in _FUNCTIONS if hasattr(place, name)),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, *_IN_PLACE),
    *(*_FUNCTIONS, "sigmoid_", "tanh_", "clamp_", "add_", "sub_", "mul_", "div_"),
    *("clone", "contiguous", "detach", F.dropout),
}
_POOLS = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
_PADS = ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad")
_POOL_FUNCTIONS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
_SPATIAL_AXES = {
    **{getattr(nn, f"{name}{axes}d"): axes for name in _POOLS + _PADS for axes in (1, 2, 3)},
    **{getattr(F, f"{name}{axes}d"): axes for name in _POOL_FUNCTIONS for axes in (1, 2, 3)},
}
_RESIZES = {nn.Upsample, F.interpolate}
_REDUCTIONS = {torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"}
_TAKES_SIZES = {torch.reshape, "reshape", "view"}
_RESHAPES = {
    *(nn.Flatten, torch.flatten, torch.squeeze, torch.unsqueeze),
    *("flatten", "squeeze", "unsqueeze", *_TAKES_SIZES),
}
_CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}
_TELLS_SHAPE = {"size", "dim", "shape", "ndim", "device", "dtype"}

# a pool of n equal values returns them within a few roundings; a border effect is far larger
_ROUNDINGS = 64


@dataclass(frozen=True)
class Channels:
    """The channels of one tensor.

    Attributes:
        axis: the axis that holds them.
        classes: which channels go together.
        constants: the value of constant channels, NaN for those that vary.
    """

    axis: int
    classes: Int64[Tensor, " width"]
    constants: Float[Tensor, " width"]


@dataclass(frozen=True)
class Mixer:
    """One layer that mixes channels.

    Attributes:
        name: the module's path.
        inputs: classes of its input channels.
        constants: what it reads at them, NaN where that varies.
        folds: whether a constant input may move into the bias, exactly.
        reads: whether an output reads an input.
        outputs: classes of its output channels.
        norm: the path of the batch norm that is its only reader, or None.
    """

    name: str
    inputs: Int64[Tensor, " ins"]
    constants: Float[Tensor, " ins"]
    folds: Bool[Tensor, " ins"]
    reads: Bool[Tensor, "outs ins"]
    outputs: Int64[Tensor, " outs"]
    norm: str | None


@dataclass(frozen=True)
class ChannelGraph:
    """The layers of a network and the classes of their channels.

    Attributes:
        mixers: layers that begin new channels, in running order.
        scalers: classes at batch norms and depthwise convolutions, by the module's path.
        pinned: whether a class must stay.
        reasons: why outputs of a mixer must stay, by its path; absent where none has to.
    """

    mixers: tuple[Mixer, ...]
    scalers: dict[str, Int64[Tensor, " width"]]
    pinned: Bool[Tensor, " classes"]
    reasons: dict[str, str]


@torch.no_grad()
def channel_graph(
    model: nn.Module,
    example: tuple[Any, ...],
    *,
    never_fires: Mapping[str, Bool[Tensor, "*neurons"]] | None = None,
    leaves: Sequence[type[nn.Module]] = (),
) -> ChannelGraph:
    """Trace `model` and find the classes, constants and readers of its channels.

    Args:
        model: a network in evaluation mode, without wrappers.
        example: the arguments of one call.
        never_fires: neurons taken as zero behind an activation, by the site's name as in
            `rectified.pruning.sites`: of the shape of its output without the batch, or one value
            a channel. A channel counts if it fires at none of its positions.
        leaves: module types that are not traced into; they are barriers.

    Raises:
        UserError: if the network cannot be traced, or `never_fires` names an unknown site or has
            another shape.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
        >>> graph = channel_graph(model, (torch.ones(1, 2),))
        >>> [mixer.name for mixer in graph.mixers], graph.reasons
        (['0', '2'], {'2': 'the output'})
    """
    walk = _Walk(trace_graph(model, example, leaves=leaves), never_fires or {})
    for node in walk.traced.graph.nodes:
        walk.visit(node)
    walk.check_sites()
    return walk.graph()


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
    return max(module.padding) > 0


def kernel_sums(weight: Float[Tensor, "outs ins *kernel"]) -> Float[Tensor, "outs ins"]:
    """The response of every output to an input that is one everywhere."""
    return weight.unsqueeze(-1).flatten(2).sum(2)


@dataclass
class _Walk:
    """One walk along a traced graph. A node without channels makes a tensor that stays as it is."""

    traced: fx.GraphModule
    never_fires: Mapping[str, Tensor]
    channels: dict[Node, Channels] = field(default_factory=dict)
    mixers: list[Mixer] = field(default_factory=list)
    scalers: dict[str, Tensor] = field(default_factory=dict)
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pins: list[tuple[Tensor, str]] = field(default_factory=list)
    sites: Counter[str] = field(default_factory=Counter)
    count: int = 0

    def __post_init__(self) -> None:
        self.modules: dict[str, Any] = dict(self.traced.named_modules())
        self.resizable = used_once(self.traced)
        self.interpreter = fx.Interpreter(self.traced)

    def visit(self, node: Node) -> None:
        if node.op in ("placeholder", "get_attr") or _tells_shape(node):
            return
        overwrites = self._overwrites(node)
        found = None if overwrites else self._rule(node)(node)
        site = self._site(node)
        if found is not None:
            self.channels[node] = self._silence(site, found, shape_of(node))
            return
        for source in node.all_input_nodes:
            if source in self.channels:
                self.pins.append((self.channels[source].classes, self._describe(node)))
            if overwrites:
                self.channels.pop(source, None)  # its constants hold no longer

    def _kind(self, node: Node) -> Any:
        """What a node calls: the type of a module, a function, or the name of a method."""
        return type(self.modules[str(node.target)]) if node.op == "call_module" else node.target

    def _rule(self, node: Node) -> Callable[[Node], Channels | None]:
        kind = self._kind(node)
        if kind in (nn.Linear, *CONVOLUTIONS):
            return self._layer
        if kind in _RESHAPES:
            return self._reshape
        if kind in _CONCATENATIONS:
            return self._concatenate
        return self._apart if self._keeps_apart(node) else lambda _node: None

    def _overwrites(self, node: Node) -> bool:
        """Whether a node changes a tensor in place that another node reads, too."""
        in_place = (
            node.target in _IN_PLACE
            or node.kwargs.get("inplace", False)
            or (node.op == "call_method" and str(node.target).endswith("_"))
            or (node.op == "call_module" and getattr(self._module(node), "inplace", False))
        )
        return bool(in_place) and len(node.all_input_nodes[0].users) > 1

    def _module(self, node: Node) -> Any:
        return self.modules[str(node.target)]

    def _fresh(self, axis: int, constants: Tensor) -> Channels:
        classes = torch.arange(self.count, self.count + len(constants), device=constants.device)
        self.count += len(constants)
        return Channels(axis, classes, constants)

    def _describe(self, node: Node) -> str:
        if node.op == "output":
            return "the output"
        if node.op == "call_module":
            return f"{node.target} ({type(self._module(node)).__name__})"
        return node.name

    # Layers that mix channels.

    def _layer(self, node: Node) -> Channels | None:
        module, source = self._module(node), node.all_input_nodes[0]
        shape = shape_of(source)
        is_linear = isinstance(module, nn.Linear)
        is_batched = len(shape) > 1 if is_linear else len(shape) == module.weight.ndim
        if not is_batched or str(node.target) not in self.resizable:
            return None
        if not is_linear and module.groups > 1:
            is_depthwise = module.groups == module.in_channels == module.out_channels
            known = self.channels.get(source)
            return self._apart(node) if is_depthwise and known and known.axis == 1 else None
        axis = len(shape) - 1 if is_linear else 1
        return self._mix(node, module, self._channels_at(source, axis, module.weight))

    def _channels_at(self, node: Node, axis: int, like: Tensor) -> Channels:
        """Channels of a node along an axis; new ones that stay if it has none there."""
        found = self.channels.get(node)
        if found is not None and found.axis == axis:
            return found
        if found is not None:
            self.pins.append((found.classes, node.name))
        stays = self._fresh(axis, like.new_full((shape_of(node)[axis],), math.nan))
        self.pins.append((stays.classes, node.name))
        return stays

    def _mix(self, node: Node, module: Any, source: Channels) -> Channels:
        known = source.constants.nan_to_num(0)
        folds = ~source.constants.isnan() & ((known == 0) | (not pads_with_zeros(module)))
        reads = (module.weight != 0).unsqueeze(-1).flatten(2).any(2) & ~folds
        constants = kernel_sums(module.weight) @ known
        if module.bias is not None:
            constants = constants + module.bias
        outputs = self._fresh(source.axis, constants.masked_fill(reads.any(1), math.nan))
        readers = [str(user.target) for user in node.users]
        norm = readers[0] if len(readers) == 1 else None
        self.mixers.append(
            Mixer(
                node.target, source.classes, source.constants, folds, reads, outputs.classes, norm
            )
        )
        return outputs

    # Operations that keep channels apart.

    def _keeps_apart(self, node: Node) -> bool:
        kind = self._kind(node)
        if kind in _ELEMENTWISE:
            return not (kind is F.dropout and node.kwargs["training"])
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        if source not in self.channels:
            return False
        axis, dimensions = self.channels[source].axis, len(shape_of(source))
        if kind in _REDUCTIONS:
            return min(_reduced_axes(node, dimensions)) > axis
        if kind is operator.getitem:
            return _leaves_alone(node.args[1], axis)
        return axis == 1 and self._is_spatial(node, kind, dimensions - 2)

    def _is_spatial(self, node: Node, kind: Any, axes: int) -> bool:
        """Whether a node works on the axes behind the channels; (batch, channel, ...) assumed."""
        if kind in NORMS:
            has_statistics = self._module(node).running_mean is not None
            return has_statistics and str(node.target) in self.resizable
        if kind is F.pad:
            padding: Any = node.args[1]
            return len(padding) <= 2 * axes
        return axes > 0 if kind in _RESIZES else _SPATIAL_AXES.get(kind) == axes

    def _apart(self, node: Node) -> Channels | None:
        """Every output channel depends on one channel, the same in every input."""
        sources = [self.channels.get(source) for source in node.all_input_nodes]
        known = [source for source in sources if source is not None]
        layouts = {(c.axis, len(c.classes)) for c in known}
        dimensions = {len(shape_of(source)) for source in node.all_input_nodes}
        if not known or len(known) < len(sources) or len(layouts) > 1 or len(dimensions) > 1:
            return None
        axis, width = layouts.pop()
        result = self._probe(node)
        if not isinstance(result, Tensor) or result.shape[axis : axis + 1] != (width,):
            return None
        varies = torch.stack([c.constants.isnan() for c in known]).any(0)
        self.ties += [(known[0].classes, other.classes) for other in known[1:]]
        if isinstance(weight := self._scale(node), Tensor):
            self.scalers[str(node.target)] = known[0].classes
            varies &= weight.reshape(len(weight), -1).any(1)  # a scale of zero hides its input
        constants = _common_values(result, axis).masked_fill(varies, math.nan)
        return Channels(axis, known[0].classes, constants)

    def _probe(self, node: Node) -> Any:
        """What a node makes of its inputs' constants, with zeros where they vary."""

        def fill(source: Node) -> Tensor:
            shape, channels = shape_of(source), self.channels[source]
            behind = [1] * (len(shape) - channels.axis - 1)
            constants = channels.constants.nan_to_num(0).reshape(-1, *behind)
            return constants.expand(1, *shape[1:]).clone()

        args, kwargs = map_arg(node.args, fill), map_arg(node.kwargs, fill)
        return getattr(self.interpreter, node.op)(node.target, args, kwargs)

    def _scale(self, node: Node) -> Tensor | None:
        """The weight of a module that scales each channel; for a norm without one, its mean."""
        if self._kind(node) not in (*NORMS, *CONVOLUTIONS):
            return None
        module = self._module(node)
        return torch.ones_like(module.running_var) if module.weight is None else module.weight

    # Operations that rearrange channels.

    def _reshape(self, node: Node) -> Channels | None:
        source = node.all_input_nodes[0]
        channels = self.channels.get(source)
        if channels is None:
            return None
        shape, width = shape_of(node), len(channels.classes)
        axis = _axis_after(shape_of(source), channels.axis, shape)
        if axis is None or (self._kind(node) in _TAKES_SIZES and _names_size(node, axis)):
            return None
        copies = shape[axis] // width
        return Channels(
            axis,
            channels.classes.repeat_interleave(copies),
            channels.constants.repeat_interleave(copies),
        )

    def _concatenate(self, node: Node) -> Channels | None:
        sources = node.all_input_nodes
        axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        axis %= len(shape_of(node))
        tensors: Any = node.args[0]
        known = [self.channels[source] for source in sources if source in self.channels]
        if not known or axis == 0 or not all(isinstance(source, Node) for source in tensors):
            return None
        parts = [self._channels_at(source, axis, known[0].constants) for source in tensors]
        return Channels(
            axis,
            torch.cat([part.classes for part in parts]),
            torch.cat([part.constants for part in parts]),
        )

    # Neurons that never fired.

    def _site(self, node: Node) -> str:
        """The name of an activation's call, as `rectified.pruning.sites` gives it; or ""."""
        path = self._site_path(node)
        if path:
            self.sites[path] += 1
        return path if self.sites[path] < 2 else f"{path}#{self.sites[path]}"

    def _site_path(self, node: Node) -> str:
        if node.op == "call_module":
            is_activation = self._kind(node).__module__ == nn.ReLU.__module__
            return str(node.target) if is_activation else ""
        is_method = node.op == "call_method"
        function = getattr(Tensor, str(node.target), None) if is_method else node.target
        kind = activation_kind(function, node.args, node.kwargs)
        return "" if kind is None else f"{caller_of(node)}.{kind[0]}".lstrip(".")

    def _silence(self, site: str, channels: Channels, shape: tuple[int, ...]) -> Channels:
        """Channels that are zero where the site's neurons never fire."""
        if site not in self.never_fires:
            return channels
        never = self.never_fires[site].to(channels.constants.device)
        if never.shape == shape[1:]:
            never = never.movedim(channels.axis - 1, 0).flatten(1).all(1)
        if never.shape != channels.constants.shape:
            raise UserError(
                f"never_fires of {site!r} must have the shape {shape[1:]} or "
                f"{tuple(channels.constants.shape)}, got {tuple(never.shape)}"
            )
        return replace(channels, constants=channels.constants.masked_fill(never, 0.0))

    def check_sites(self) -> None:
        """Refuse names that are no site; those inside a module that is kept whole may be."""
        whole = {f"{node.target}." for node in self.traced.graph.nodes if node.op == "call_module"}
        for name in self.never_fires:
            path, _, call = name.partition("#")
            is_known = self.sites[path] >= int(call or 1)
            if not is_known and not name.startswith(tuple(whole)):
                choose("site in never_fires", name, list(+self.sites))

    # The result.

    def graph(self) -> ChannelGraph:
        component = self._components()
        reasons = [""] * (int(component.max()) + 1 if len(component) else 0)
        for classes, reason in reversed(self.pins):
            for index in component[classes].unique().tolist():
                reasons[index] = reason
        mixers = tuple(
            replace(
                mixer,
                inputs=component[mixer.inputs],
                outputs=component[mixer.outputs],
                norm=mixer.norm if isinstance(self.modules.get(mixer.norm or ""), NORMS) else None,
            )
            for mixer in self.mixers
        )
        scalers = {name: component[classes] for name, classes in self.scalers.items()}
        pinned = torch.tensor([bool(reason) for reason in reasons], device=component.device)
        why = {
            mixer.name: next(filter(None, (reasons[i] for i in mixer.outputs.tolist())), "")
            for mixer in mixers
        }
        return ChannelGraph(
            mixers, scalers, pinned, {n: reason for n, reason in why.items() if reason}
        )

    def _components(self) -> Int64[Tensor, " channels"]:
        """For every channel that was begun the number of its class, after all ties."""
        empty = torch.zeros(0, dtype=torch.long)
        ends = [torch.cat([empty, *(tie[end].cpu() for tie in self.ties)]) for end in (0, 1)]
        links = coo_array((torch.ones(len(ends[0])), ends), shape=(self.count, self.count))
        _, component = connected_components(links, directed=False)
        device = self.mixers[0].inputs.device if self.mixers else None
        return torch.as_tensor(component, dtype=torch.long, device=device)


def _tells_shape(node: Node) -> bool:
    """Whether a node only asks for sizes, which a smaller network answers by itself."""
    if node.op == "call_method":
        return node.target in _TELLS_SHAPE
    return node.target is getattr and node.args[1] in _TELLS_SHAPE


def _common_values(tensor: Tensor, axis: int) -> Float[Tensor, " width"]:
    """The value of every channel that is the same at all positions, NaN for the others."""
    values = tensor.movedim(axis, 0).flatten(1)
    low, high = values.amin(1), values.amax(1)
    rounding = _ROUNDINGS * torch.finfo(values.dtype).eps * high.abs()
    return values[:, 0].masked_fill(high - low > rounding, math.nan)


def _reduced_axes(node: Node, dimensions: int) -> list[int]:
    axes: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if axes is None:
        return [0]
    return [axis % dimensions for axis in ([axes] if isinstance(axes, int) else axes)]


def _leaves_alone(index: Any, axis: int) -> bool:
    """Whether indexing takes everything along the axes up to this one."""
    entries = index if isinstance(index, tuple) else (index,)
    ahead, behind = entries[: axis + 1], entries[axis + 1 :]
    return len(ahead) == axis + 1 and all(
        [*(entry == slice(None) for entry in ahead), *(isinstance(e, slice | int) for e in behind)]
    )


def _axis_after(shape: tuple[int, ...], axis: int, reshaped: tuple[int, ...]) -> int | None:
    """Where an axis, perhaps together with axes behind it, stands after a reshape."""
    ahead = math.prod(shape[:axis])
    for new_axis in range(1, len(reshaped)):
        is_same_start = math.prod(reshaped[:new_axis]) == ahead
        if is_same_start and reshaped[new_axis] % shape[axis] == 0:
            return new_axis
    return None


def _names_size(node: Node, axis: int) -> bool:
    """Whether a reshape is told the size of an axis as a number, which could not shrink."""
    sizes: Any = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = sizes[0]
    return axis >= len(sizes) or (isinstance(sizes[axis], int) and sizes[axis] != -1)
