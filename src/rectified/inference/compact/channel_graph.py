"""The channel graph: which channels of a network belong together, and which carry nothing.

Along the channel axis of every tensor in a traced network there are

    classes     an integer per channel; channels of one class can only be removed together, because
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, fx, nn
from torch.fx.node import Node, map_arg

from rectified.errors import UserError, choose
from rectified.graphs.copies import is_hooked
from rectified.graphs.operations import (
    CONVOLUTIONS,
    LAYERS,
    NORMS,
    TRANSFORMERS,
    Trait,
    argument,
    kind_of,
    kinds,
    kinds_of,
    module_of,
)
from rectified.graphs.shapes import shape_of, site_names, trace_graph, used_once
from rectified.graphs.traces import overwritten
from rectified.inference.compact.channel_axes import (
    asks_shape,
    axis_after_reshape,
    keeps_channels_apart,
    pads_with_zeros,
)

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
        reasons: why outputs of a layer must stay, by its path; absent where none has to.
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
            `rectified.graphs.sites`: of the shape of its output without the batch, or one value
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
    traced = trace_graph(model, example, leaves=leaves)
    never_fires = never_fires or {}
    _check_sites(traced, never_fires)
    walk = _Walk(traced, never_fires)
    for node in traced.graph.nodes:
        walk.visit(node)
    return walk.graph()


def _check_sites(traced: fx.GraphModule, never_fires: Mapping[str, Tensor]) -> None:
    """Refuse names that are no site; those inside a module that is kept whole may be."""
    sites = list(site_names(traced).values())
    whole = tuple(f"{node.target}." for node in traced.graph.nodes if node.op == "call_module")
    for name in never_fires:
        if not name.startswith(whole):
            choose("site in never_fires", name, sites)


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
    count: int = 0

    def __post_init__(self) -> None:
        self.modules: dict[str, Any] = dict(self.traced.named_modules())
        self.resizable = used_once(self.traced)
        self.sites = site_names(self.traced)
        self.interpreter = fx.Interpreter(self.traced)

    def visit(self, node: Node) -> None:
        if node.op in ("placeholder", "get_attr") or asks_shape(node):
            return
        changed = overwritten(node, self.modules)
        found = None if changed else self._rule(node)(node)
        if found is not None:
            self.channels[node] = self._silence(node, found)
            return
        for source in (*node.all_input_nodes, *changed):
            if source in self.channels:
                self.pins.append((self.channels[source].classes, self._describe(node)))
        for source in changed:
            self.channels.pop(source, None)  # its constants hold no longer
        self._look_into(node)

    def _rule(self, node: Node) -> Callable[[Node], Channels | None]:
        kind = self._kind(node)
        if kind is nn.Linear or kind in CONVOLUTIONS:
            return self._layer
        if kind in kinds(Trait.RESHAPE):
            return self._reshape
        return self._concatenate if kind in kinds_of("cat") else self._apart

    def _module(self, node: Node) -> Any:
        return module_of(node, self.modules)

    def _kind(self, node: Node) -> Any:
        return kind_of(node, self.modules)

    def _describe(self, node: Node) -> str:
        if node.op == "output":
            return "the output"
        is_module = node.op == "call_module"
        return f"{node.target} ({self._kind(node).__name__})" if is_module else node.name

    # Layers that mix channels.

    def _layer(self, node: Node) -> Channels | None:
        module, source = self._module(node), node.all_input_nodes[0]
        is_linear, dimensions = isinstance(module, nn.Linear), len(shape_of(source))
        is_batched = dimensions > 1 if is_linear else dimensions == module.weight.ndim
        if not is_batched or str(node.target) not in self.resizable:
            return None
        if is_linear or module.groups == 1:
            axis = dimensions - 1 if is_linear else 1
            return self._mix(node, module, self._channels_at(source, axis, module.weight))
        is_depthwise = module.groups == module.in_channels == module.out_channels
        return self._pass_on(node) if is_depthwise and self._axis(source) == 1 else None

    def _axis(self, node: Node) -> int | None:
        return self.channels[node].axis if node in self.channels else None

    def _channels_at(self, node: Node, axis: int, like: Tensor) -> Channels:
        """Channels of a node along an axis; new ones that stay if it has none there."""
        if self._axis(node) == axis:
            return self.channels[node]
        if node in self.channels:
            self.pins.append((self.channels[node].classes, node.name))
        stays = self._begin(axis, like.new_full((shape_of(node)[axis],), math.nan))
        self.pins.append((stays.classes, node.name))
        return stays

    def _begin(self, axis: int, constants: Tensor) -> Channels:
        classes = torch.arange(self.count, self.count + len(constants), device=constants.device)
        self.count += len(constants)
        return Channels(axis, classes, constants)

    def _mix(self, node: Node, module: Any, source: Channels) -> Channels:
        readers = list(node.users)
        is_normed = len(readers) == 1 and self._kind(readers[0]) in NORMS
        norm = str(readers[0].target) if is_normed else None
        return self._mixer(str(node.target), module, source, norm)

    def _mixer(self, name: str, module: Any, source: Channels, norm: str | None) -> Channels:
        known = source.constants.nan_to_num(0)
        folds = ~source.constants.isnan() & ((known == 0) | (not pads_with_zeros(module)))
        reads = (module.weight != 0).unsqueeze(-1).flatten(2).any(2) & ~folds
        constants = kernel_sums(module.weight) @ known
        if module.bias is not None:
            constants = constants + module.bias
        outputs = self._begin(source.axis, constants.masked_fill(reads.any(1), math.nan))
        self.mixers.append(
            Mixer(
                name=name,
                inputs=source.classes,
                constants=source.constants,
                folds=folds,
                reads=reads,
                outputs=outputs.classes,
                norm=norm,
            )
        )
        return outputs

    # Transformer layers of PyTorch, which are not traced into.

    def _look_into(self, node: Node) -> None:
        if node.op != "call_module":
            return
        for path, module in self._module(node).named_modules():
            if type(module) in TRANSFORMERS and not is_hooked(module):
                self._feed_forward(f"{node.target}.{path}".rstrip("."), module)

    def _feed_forward(self, path: str, module: Any) -> None:
        """The hidden units of a transformer layer, which nothing else reads."""
        first, second = f"{path}.linear1", f"{path}.linear2"
        activation = module.activation
        kind = type(activation) if isinstance(activation, nn.Module) else activation
        if not {first, second} <= self.resizable or kind not in kinds(Trait.ELEMENTWISE):
            return
        unknown = module.linear1.weight.new_full((module.linear1.in_features,), math.nan)
        stays = self._begin(1, unknown)
        hidden = self._mixer(first, module.linear1, stays, None)
        constants = activation(hidden.constants.nan_to_num(0))
        hidden = replace(hidden, constants=constants.where(~hidden.constants.isnan(), math.nan))
        made = self._mixer(second, module.linear2, hidden, None)
        self.pins += [(ends.classes, f"{path} ({type(module).__name__})") for ends in (stays, made)]

    # Operations that keep channels apart.

    def _apart(self, node: Node) -> Channels | None:
        kind, sources = self._kind(node), node.all_input_nodes
        axis = self._axis(sources[0]) if sources else None
        if axis is None or (kind in NORMS and not self._has_own_statistics(node)):
            return None
        is_apart = keeps_channels_apart(node, kind, axis, len(shape_of(sources[0])))
        return self._pass_on(node) if is_apart else None

    def _has_own_statistics(self, node: Node) -> bool:
        return self._module(node).running_mean is not None and str(node.target) in self.resizable

    def _pass_on(self, node: Node) -> Channels | None:
        """The channels of the inputs, tied, with the constants that the node makes of theirs."""
        known = [
            self.channels[source] for source in node.all_input_nodes if source in self.channels
        ]
        layouts = {(c.axis, len(c.classes)) for c in known}
        dimensions = {len(shape_of(source)) for source in node.all_input_nodes}
        if len(known) < len(node.all_input_nodes) or len(layouts) > 1 or len(dimensions) > 1:
            return None
        axis, width = layouts.pop()
        result = self._probe(node)
        if not isinstance(result, Tensor) or result.shape[axis : axis + 1] != (width,):
            return None
        self.ties += [(known[0].classes, other.classes) for other in known[1:]]
        varies = torch.stack([c.constants.isnan() for c in known]).any(0) & self._lets_through(node)
        if self._kind(node) in (*NORMS, *CONVOLUTIONS):
            self.scalers[str(node.target)] = known[0].classes
        constants = _common_values(result, axis).masked_fill(varies, math.nan)
        return Channels(axis, known[0].classes, constants)

    def _probe(self, node: Node) -> Any:
        """The output of a node for its inputs' constants, with zeros where they vary."""

        def fill(source: Node) -> Tensor:
            shape, channels = shape_of(source), self.channels[source]
            behind = [1] * (len(shape) - channels.axis - 1)
            constants = channels.constants.nan_to_num(0).reshape(-1, *behind)
            return constants.expand(1, *shape[1:]).clone()

        args, kwargs = map_arg(node.args, fill), map_arg(node.kwargs, fill)
        return getattr(self.interpreter, node.op)(node.target, args, kwargs)

    def _lets_through(self, node: Node) -> Any:
        """The channels whose scale in a norm or a depthwise convolution is not zero."""
        weight = getattr(self._module(node), "weight", None)
        return True if weight is None else weight.reshape(len(weight), -1).any(1)

    # Operations that rearrange channels.

    def _reshape(self, node: Node) -> Channels | None:
        source, shape = node.all_input_nodes[0], shape_of(node)
        if source not in self.channels:
            return None
        before = self.channels[source]
        axis = axis_after_reshape(node, self._kind(node), before.axis, shape_of(source), shape)
        if axis is None:
            return None
        copies = shape[axis] // len(before.classes)
        classes, constants = (
            values.repeat_interleave(copies) for values in (before.classes, before.constants)
        )
        return Channels(axis, classes, constants)

    def _concatenate(self, node: Node) -> Channels | None:
        tensors, shape = argument(node, 0, "tensors"), shape_of(node)
        known = [self.channels[tensor] for tensor in tensors if tensor in self.channels]
        axis = argument(node, 1, "dim", 0) % len(shape)
        if not known or axis == 0:
            return None
        parts = [self._channels_at(tensor, axis, known[0].constants) for tensor in tensors]
        classes, constants = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("classes", "constants")
        )
        return Channels(axis, classes, constants)

    # Neurons that never fired.

    def _silence(self, node: Node, channels: Channels) -> Channels:
        """Make zero what never fires, if the node is such a site."""
        site, shape = self.sites.get(node, ""), shape_of(node)[1:]
        if site not in self.never_fires:
            return channels
        never, width = self.never_fires[site].to(channels.constants.device), len(channels.classes)
        if never.shape not in (shape, (width,)):
            raise UserError(
                f"never_fires[{site!r}] must have the shape {shape} or {(width,)}, "
                f"got {tuple(never.shape)}"
            )
        if never.shape == shape:
            never = never.movedim(channels.axis - 1, 0).reshape(width, -1).all(1)
        return replace(channels, constants=channels.constants.masked_fill(never, 0.0))

    # The result.

    def graph(self) -> ChannelGraph:
        class_of = self._components()
        reasons: dict[int, str] = {}
        for classes, reason in reversed(self.pins):
            reasons |= dict.fromkeys(class_of[classes].tolist(), reason)
        mixers = tuple(
            replace(
                mixer,
                inputs=class_of[mixer.inputs],
                outputs=class_of[mixer.outputs],
                norm=mixer.norm if mixer.norm in self.scalers else None,
            )
            for mixer in self.mixers
        )
        scalers = {name: class_of[classes] for name, classes in self.scalers.items()}
        pinned = class_of.new_zeros(int(class_of.max()) + 1 if self.count else 0, dtype=torch.bool)
        pinned[list(reasons)] = True
        return ChannelGraph(mixers, scalers, pinned, self._explain(mixers, scalers, reasons))

    def _explain(
        self, mixers: tuple[Mixer, ...], scalers: dict[str, Tensor], reasons: dict[int, str]
    ) -> dict[str, str]:
        followed = {mixer.name: mixer.outputs for mixer in mixers} | scalers
        touched = {
            name: [reasons[c] for c in classes.tolist() if c in reasons]
            for name, classes in followed.items()
        }
        left = {
            name: "grouped, shared, hooked or not called as a layer"
            for name, module in self.modules.items()
            if isinstance(module, LAYERS) and name not in followed
        }
        return {name: first[0] for name, first in touched.items() if first} | left

    def _components(self) -> Int64[Tensor, " channels"]:
        """The class of every channel that was begun, after all ties."""
        empty = torch.zeros(0, dtype=torch.long)
        ends = [torch.cat([empty, *(tie[end].cpu() for tie in self.ties)]) for end in (0, 1)]
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        links = coo_array((torch.ones(len(ends[0])), ends), shape=(self.count, self.count))
        _, component = connected_components(links, directed=False)
        device = self.mixers[0].inputs.device if self.mixers else None
        return torch.as_tensor(component, dtype=torch.long, device=device)


def _common_values(tensor: Tensor, axis: int) -> Float[Tensor, " width"]:
    """The value of every channel that is the same at all positions, NaN for the others."""
    values = tensor.movedim(axis, 0).flatten(1)
    low, high = values.amin(1), values.amax(1)
    rounding = _ROUNDINGS * torch.finfo(values.dtype).eps * high.abs()
    is_common = (high - low <= rounding) & high.isfinite()
    return high.masked_fill(~is_common, math.nan)
