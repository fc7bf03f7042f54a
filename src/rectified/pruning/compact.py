"""Compaction: really remove the channels that pruning has emptied, and keep the function.

Unstructured pruning leaves tensors of the old size with zeros in them. Whole channels can go, with
no change of any output, when nobody reads them, or when they are constant: a channel without
incoming weights still emits its bias, behind a batch norm beta - gamma mu / sigma, and that value
times the outgoing weights moves into the next layer's bias. With the classes, constants and
readers of `rectified.pruning.channel_graph`:

    needed      a class is needed if it is pinned, or if an output of a needed class reads it
    folded      the constants of the others move into the bias of their readers, or into the
                running mean of the batch norm behind it, so that a layer gets no new parameter
    merged      constants c_1, c_2, ... that only zero-padded convolutions read, where a bias would
                be wrong at the border, become one channel: w_1 += w_2 c_2 / c_1
    emptied     a layer without any needed channel keeps one, of zero weights

`needed` is the smallest solution, so that loops in which channels only feed each other go, too.
The result has the same class and the same names in its `state_dict`, with smaller tensors; a layer
without bias or batch norm gets a bias if a constant has to go there. Stored weights come back
through `resize`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rectified.errors import UserError
from rectified.pruning.channel_graph import (
    CONVOLUTIONS,
    NORMS,
    ChannelGraph,
    Mixer,
    channel_graph,
    kernel_sums,
)
from rectified.pruning.masks import apply_
from rectified.pruning.sites import bare


@dataclass(frozen=True)
class LayerSize:
    """What became of one layer.

    Attributes:
        name: the module's path.
        inputs: channels or units it reads, before and after.
        outputs: channels or units it makes, before and after.
        stays: what needs outputs of their present number, such as the network's output or an
            operation that mixes channels in an unknown way; None if they were free to go.
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
            data, by the site's name in `rectified.pruning.sites`, as
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
    lean = copy.deepcopy(bare(model)).eval()
    apply_(lean, masks or {})
    _check_finite(lean)
    inputs = example if isinstance(example, tuple) else (example,)
    expected = lean(*inputs)
    graph = channel_graph(lean, inputs, never_fires=never_fires, leaves=leaves)
    plan = _plan(graph)
    for mixer in graph.mixers:
        _move_constants_(lean, mixer, plan)
    for mixer in graph.mixers:
        _shrink_mixer_(lean.get_submodule(mixer.name), mixer, plan)
    for name, classes in graph.scalers.items():
        _shrink_scaler_(lean.get_submodule(name), plan.present[classes])
    _check_same(lean, inputs, expected)
    return Compaction(lean, tuple(_size(mixer, plan, graph) for mixer in graph.mixers))


def _check_finite(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"weights must be finite, {name!r} holds NaN or infinity")


def _size(mixer: Mixer, plan: _Plan, graph: ChannelGraph) -> LayerSize:
    def count(classes: Tensor) -> tuple[int, int]:
        return len(classes), int(plan.present[classes].sum())

    stays = graph.reasons.get(mixer.name)
    return LayerSize(mixer.name, count(mixer.inputs), count(mixer.outputs), stays)


# What stays.


@dataclass(frozen=True)
class _Plan:
    """What happens to each class.

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
    patterns, group = (strength[candidates] > 0).unique(dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        members = candidates[group == number]
        heir = members[strength[members][:, pattern].amin(1).argmax()]
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


# Smaller tensors.


def _shrink_mixer_(module: nn.Module, mixer: Mixer, plan: _Plan) -> None:
    outputs, inputs = plan.present[mixer.outputs], plan.present[mixer.inputs]
    for name, tensor in _tensors(module):
        _set_(module, name, tensor[outputs][:, inputs] if name == "weight" else tensor[outputs])
    _fit_attributes_(module)


def _shrink_scaler_(module: nn.Module, present: Bool[Tensor, " width"]) -> None:
    for name, tensor in _tensors(module):
        _set_(module, name, tensor[present] if tensor.ndim else tensor)
    _fit_attributes_(module)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    own = [*module._parameters.items(), *module._buffers.items()]
    return [(name, tensor) for name, tensor in own if tensor is not None]


def _set_(module: nn.Module, name: str, tensor: Tensor) -> None:
    old = getattr(module, name)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor.detach(), requires_grad=old.requires_grad)
    setattr(module, name, tensor)


def _fit_attributes_(module: Any) -> None:
    """Make a module's numbers of channels those of its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, CONVOLUTIONS):
        if module.groups == module.in_channels == module.out_channels:
            module.groups = len(module.weight)
        module.out_channels = len(module.weight)
        module.in_channels = module.weight.shape[1] * module.groups
    else:
        module.num_features = len(module.running_mean)


def _check_same(model: nn.Module, inputs: tuple[Any, ...], expected: Any) -> None:
    name = type(model).__name__
    advice = f"does the forward of {name} depend on the sizes of its layers, or do neurons of "
    advice += "never_fires fire on the example?"
    try:
        pairs = list(zip(tree_leaves(expected), tree_leaves(model(*inputs)), strict=True))
        difference = max(_difference(*pair) for pair in pairs)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the smaller {name} does not run: {reason}; {advice}") from error
    if difference > 1:
        raise UserError(f"the smaller {name} has other outputs on the example: {advice}")


def _difference(expected: Tensor, actual: Tensor) -> float:
    """In units of what may be rounding."""
    if expected.shape != actual.shape:
        return math.inf
    # half of the digits: rounding stays far below, a wrong channel far above
    rounding = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().amax().clamp(min=1)
    return float((expected - actual).abs().amax() / rounding)


# Loading.


def resize(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` with the sizes and the weights of a compact `state_dict`.

    So a compact network is stored as plain tensors, and loaded without a pickle.

    Args:
        model: a network of the architecture that was compacted, at its full size.
        state_dict: what `compact(...)`'s result holds.

    Raises:
        UserError: if a tensor is missing, unknown, or of a shape that no compaction makes.

    Example:
        >>> def network():
        ...     return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> model = network()
        >>> small = compact(model, torch.ones(1, 4), masks={"2.weight": torch.eye(2, 3) > 0})
        >>> resize(network(), small.state_dict())[0]
        Linear(in_features=4, out_features=2, bias=True)
    """
    resized = copy.deepcopy(bare(model))
    for name, module in resized.named_modules():
        if type(module) in (nn.Linear, *CONVOLUTIONS, *NORMS):
            _resize_(module, name, state_dict)
    try:
        resized.load_state_dict(state_dict)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"state_dict does not fit: {reason}") from error
    return resized


def _resize_(module: Any, path: str, state_dict: Mapping[str, Tensor]) -> None:
    prefix = f"{path}." if path else ""
    if module._parameters.get("bias", module) is None and f"{prefix}bias" in state_dict:
        module.bias = nn.Parameter(module.weight.new_empty(len(module.weight)))
    for name, tensor in _tensors(module):
        stored = state_dict.get(f"{prefix}{name}", tensor)
        is_smaller = all(new <= old for new, old in zip(stored.shape, tensor.shape, strict=False))
        if stored.ndim != tensor.ndim or not is_smaller or stored.shape[2:] != tensor.shape[2:]:
            raise UserError(
                f"state_dict[{prefix + name!r}] must be a part of {tuple(tensor.shape)}, "
                f"got {tuple(stored.shape)}"
            )
        _set_(module, name, tensor.new_empty(stored.shape))
    _fit_attributes_(module)
