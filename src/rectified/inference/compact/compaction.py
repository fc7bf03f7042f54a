"""Compaction: really remove the channels that pruning has emptied, and keep the function.

Unstructured pruning leaves tensors of the old size with zeros in them. Whole channels can go, with
no change of any output, when nobody reads them, or when they are constant: a channel without
incoming weights still emits its bias, behind a batch norm beta - gamma mu / sigma, and that value
times the outgoing weights moves into the next layer's bias. With the classes, constants and
readers of `rectified.inference.compact.channel_graph`:

    needed      a class is needed if it is pinned, or if an output of a needed class reads it
    folded      the constants of the others move into the bias of their readers, or into the
                running mean of the batch norm behind it, so that a layer gets no new parameter
    merged      constants c_1, c_2, ... that only zero-padded convolutions read, where a bias would
                be wrong at the border, become one channel: w_1 += w_2 c_2 / c_1
    emptied     a layer without any needed channel keeps one, of zero weights

`needed` is the smallest solution, so that loops in which channels only feed each other go, too.
The result has the same class and the same names in its `state_dict`, with smaller tensors; a layer
without bias or batch norm gets a bias if a constant has to go there. Stored weights come back
through `rectified.inference.compact.resize`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from rectified.errors import UserError, first_line
from rectified.graphs.copies import agree, bare, plain_copy
from rectified.graphs.operations import LAYERS
from rectified.graphs.weights import apply_
from rectified.inference.compact.channel_graph import (
    ChannelGraph,
    Mixer,
    channel_graph,
    kernel_sums,
)
from rectified.inference.compact.resize import replace_tensors_


@dataclass(frozen=True)
class LayerSize:
    """The size of one linear layer or convolution before and after.

    Attributes:
        name: the module's path.
        inputs: channels or units it reads, before and after.
        outputs: channels or units it makes, before and after.
        stays: what needs its outputs as they are, such as the network's output or an operation
            that mixes channels in an unknown way; None if all were free to go.
    """

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    stays: str | None


@dataclass(frozen=True)
class Compaction:
    """A smaller network of the same function, and what became of each layer."""

    model: nn.Module
    layers: tuple[LayerSize, ...]


def compact(
    model: nn.Module,
    example: Any,
    *,
    masks: Mapping[str, Tensor] | None = None,
    never_fires: Mapping[str, Bool[Tensor, "*neurons"]] | None = None,
    leaves: Sequence[type[nn.Module]] = (),
) -> nn.Module:
    """A smaller network with the outputs of the pruned one.

    Args:
        model: any network that `torch.fx` can trace; it is left as it was.
        example: a batch of inputs, a tensor or a tuple of arguments; the result is checked on it.
        masks: which weights are kept; by default the zeros in the weights count.
        never_fires: opt-in and empirical: neurons to be taken as zero because they were on some
            data, by the site's name in `rectified.graphs.sites`, as
            `DeadNeurons.sites[i].never_fires` holds them. Outputs are equal as long as that is
            true; the example has to be of that data.
        leaves: module types that `torch.fx` cannot trace; they stay whole, and so does what
            they touch.

    Returns:
        A copy in evaluation mode: same class, same names, smaller tensors.

    Raises:
        UserError: if the network cannot be traced, a weight is not finite, a mask or a site does
            not fit, or the outputs are not the same on the example, since the network's forward
            depends on the sizes of its layers or since neurons fire that never should.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> masks = {"0.weight": torch.tensor([[True], [False], [True]]).expand(3, 4)}
        >>> compact(model, torch.ones(1, 4), masks=masks)
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    return compaction(model, example, masks=masks, never_fires=never_fires, leaves=leaves).model


@torch.no_grad()
def compaction(
    model: nn.Module,
    example: Any,
    *,
    masks: Mapping[str, Tensor] | None = None,
    never_fires: Mapping[str, Bool[Tensor, "*neurons"]] | None = None,
    leaves: Sequence[type[nn.Module]] = (),
) -> Compaction:
    """As `compact`, and what became of each layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> masks = {"0.weight": torch.tensor([[True], [False], [True]]).expand(3, 4)}
        >>> for layer in compaction(model, torch.ones(1, 4), masks=masks).layers:
        ...     print(layer)
        LayerSize(name='0', inputs=(4, 4), outputs=(3, 2), stays=None)
        LayerSize(name='2', inputs=(3, 2), outputs=(2, 2), stays='the output')
    """
    lean = plain_copy(model).eval()
    apply_(lean, masks or {})
    _check_finite(lean)
    inputs = example if isinstance(example, tuple) else (example,)
    expected = lean(*inputs)
    graph = channel_graph(lean, inputs, never_fires=never_fires, leaves=leaves)
    plan = _plan(graph)
    for mixer in graph.mixers:
        _move_constants_(lean, mixer, plan)
    _remove_(lean, graph, plan.present)
    _check_same(lean, inputs, expected)
    return Compaction(lean, tuple(_sizes(bare(model), lean, graph.reasons)))


def _remove_(model: nn.Module, graph: ChannelGraph, present: Bool[Tensor, " classes"]) -> None:
    def remove(name: str, outputs: Tensor, inputs: Tensor | slice) -> None:
        def part(_name: str, tensor: Tensor) -> Tensor:
            if tensor.ndim == 0:  # a norm's number of batches
                return tensor
            return tensor[outputs][:, inputs] if tensor.ndim > 1 else tensor[outputs]

        replace_tensors_(model.get_submodule(name), part)

    for mixer in graph.mixers:
        remove(mixer.name, present[mixer.outputs], present[mixer.inputs])
    for name, classes in graph.scalers.items():
        remove(name, present[classes], slice(None))


def _check_finite(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"weights must be finite, {name!r} holds NaN or infinity")


def _sizes(model: nn.Module, lean: nn.Module, reasons: Mapping[str, str]) -> list[LayerSize]:
    def channels(module: Any) -> tuple[int, int]:
        if isinstance(module, nn.Linear):
            return module.in_features, module.out_features
        return module.in_channels, module.out_channels

    sizes = []
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            before, after = channels(module), channels(lean.get_submodule(name))
            inputs, outputs = zip(before, after, strict=True)
            sizes.append(LayerSize(name, inputs, outputs, reasons.get(name)))
    return sizes


# What stays.


@dataclass(frozen=True)
class _Plan:
    """The fate of each class of channels.

    Attributes:
        needed: it keeps its meaning.
        present: it keeps its place: the needed ones, and one for every emptied layer.
        heirs: the class that it is merged into, -1 for none.
    """

    needed: Bool[Tensor, " classes"]
    present: Bool[Tensor, " classes"]
    heirs: Int64[Tensor, " classes"]


def _plan(graph: ChannelGraph) -> _Plan:
    needed = _needed(graph)
    heirs = _heirs(graph, needed)
    needed &= heirs < 0
    present = needed.clone()
    for mixer in graph.mixers:
        if not present[mixer.outputs].any():
            present[mixer.outputs[0]] = True
    return _Plan(needed, present, heirs)


def _needed(graph: ChannelGraph) -> Bool[Tensor, " classes"]:
    """The classes from which a path of readers leads to a pinned one."""
    needed, count = graph.pinned.clone(), -1
    while count != (count := int(needed.sum())):
        for mixer in reversed(graph.mixers):
            needed[mixer.inputs[mixer.reads[needed[mixer.outputs]].any(0)]] = True
    return needed


def _heirs(graph: ChannelGraph, needed: Bool[Tensor, " classes"]) -> Int64[Tensor, " classes"]:
    """Among constant classes that the same zero-padded layers read, the strongest takes over."""
    heirs = torch.full_like(needed, -1, dtype=torch.long)
    strength, may_merge = _strengths(graph), needed & ~_varying(graph)
    candidates = (may_merge & (strength > 0).any(1)).nonzero()[:, 0]
    groups: dict[tuple[int, ...], list[int]] = {}
    for candidate in candidates.tolist():
        layers = tuple(strength[candidate].nonzero()[:, 0].tolist())
        groups.setdefault(layers, []).append(candidate)
    for layers, group in groups.items():
        members = torch.tensor(group, device=heirs.device)
        heir = members[strength[members][:, list(layers)].amin(1).argmax()]
        heirs[members[members != heir]] = heir
    return heirs


def _strengths(graph: ChannelGraph) -> Tensor:
    """The size of each class's constant at each layer that cannot fold it, else zero."""
    like = graph.mixers[0].constants if graph.mixers else torch.zeros(0)
    strength = like.new_zeros(len(graph.pinned), len(graph.mixers))
    for column, mixer in enumerate(graph.mixers):
        stuck = _stuck(mixer)
        strength[mixer.inputs[stuck], column] = mixer.constants[stuck].abs()
    return strength


def _stuck(mixer: Mixer) -> Bool[Tensor, " ins"]:
    return ~mixer.folds & ~mixer.constants.isnan()


def _varying(graph: ChannelGraph) -> Bool[Tensor, " classes"]:
    """Classes that are not constant at every reader, or stand twice before one."""
    varying = graph.pinned.clone()
    for mixer in graph.mixers:
        varying[mixer.inputs[mixer.constants.isnan()]] = True
        places = mixer.inputs[_stuck(mixer)].bincount(minlength=len(varying))
        varying |= places > 1
    return varying


# Moving constants, in place, while all tensors have their old size.


def _move_constants_(model: nn.Module, mixer: Mixer, plan: _Plan) -> None:
    """Empty the inputs that are not needed; what they gave goes to other inputs and the bias."""
    module: Any = model.get_submodule(mixer.name)
    gone, known = ~plan.needed[mixer.inputs], mixer.constants.nan_to_num(0)
    _merge_(module.weight, mixer, plan.heirs, known)
    shift = kernel_sums(module.weight) @ known.masked_fill(~(gone & mixer.folds), 0)
    empty = ~plan.needed[mixer.outputs]
    module.weight[:, gone] = 0
    module.weight[empty] = 0
    _shift_(model, module, mixer.norm, shift.masked_fill(empty, 0))


def _merge_(weight: Tensor, mixer: Mixer, heirs: Tensor, known: Tensor) -> None:
    column_of = torch.zeros_like(heirs)
    column_of[mixer.inputs] = torch.arange(len(mixer.inputs), device=heirs.device)
    moves = _stuck(mixer) & (heirs[mixer.inputs] >= 0)
    to = column_of[heirs[mixer.inputs[moves]]]
    ratio = (known[moves] / known[to]).reshape(1, -1, *[1] * (weight.ndim - 2))
    weight.index_add_(1, to, weight[:, moves] * ratio)


def _shift_(model: nn.Module, module: Any, norm: str | None, shift: Tensor) -> None:
    """Add a constant to a layer's outputs."""
    if module.bias is not None:
        module.bias += shift
    elif norm is not None:
        statistics: Any = model.get_submodule(norm)
        statistics.running_mean -= shift
    elif shift.any():
        module.bias = nn.Parameter(shift, requires_grad=module.weight.requires_grad)


def _check_same(model: nn.Module, inputs: tuple[Any, ...], expected: Any) -> None:
    name = type(model).__name__
    advice = (
        f"does the forward of {name} depend on the sizes of its layers, "
        "or does the example make neurons of never_fires fire?"
    )
    try:
        is_same = agree(expected, model(*inputs))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the smaller {name} does not run: {first_line(error)}; {advice}"
        ) from error
    if not is_same:
        raise UserError(f"the smaller {name} has other outputs on the example: {advice}")
