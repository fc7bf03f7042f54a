"""Sites: where a network's activation functions are called, and which layers stand around them.

A *site* is one call of an activation function in a forward pass: a module (`nn.ReLU`), the
second use of the same module, or a functional call (`F.relu`, `x.relu()`, `x.clamp(min=0)`).
`watch` reports the output of every site while a network runs; `trace` runs one example and tells
which layers feed which sites, through norms, pools, reshapes and residual sums. Both see the
calls themselves (a `TorchFunctionMode`), so nothing is hidden from them by the way a network is
written; compiled parts run uncompiled for as long as they are watched.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rectified.graphs.copies import bare
from rectified.networks import evaluating

RELU = "relu"  # cut at zero: an output is zero or it fires
SMOOTH = "smooth"  # near zero for negative input: needs a threshold to call a neuron dead

_ALWAYS: dict[Any, tuple[str, str]] = {
    **dict.fromkeys(
        (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), ("relu", RELU)
    ),
    F.relu6: ("relu6", RELU),
    F.gelu: ("gelu", SMOOTH),
    F.silu: ("silu", SMOOTH),
    F.mish: ("mish", SMOOTH),
    F.hardswish: ("hardswish", SMOOTH),
}
_IF_CUT_AT_ZERO: dict[Any, int] = {  # function -> the position of its lower bound
    **dict.fromkeys((torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_), 1),
    **dict.fromkeys((torch.clip, torch.clip_, Tensor.clip, Tensor.clip_), 1),
    **dict.fromkeys((torch.clamp_min, torch.clamp_min_), 1),
    **dict.fromkeys((Tensor.clamp_min, Tensor.clamp_min_), 1),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), 1),
}
_LOWER_BOUND = ("min", "min_val")
_NORMS = {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm}


def activation_kind(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, str] | None:
    """The name and kind of an activation function's call, or None for any other call.

    Example:
        >>> activation_kind(Tensor.clamp, (torch.ones(1),), {"min": 0})
        ('clamp', 'relu')
    """
    if function in _ALWAYS:
        return _ALWAYS[function]
    if function in _IF_CUT_AT_ZERO:
        bounds = [kwargs[name] for name in _LOWER_BOUND if name in kwargs]
        position = _IF_CUT_AT_ZERO[function]
        bounds += args[position : position + 1]
        if bounds and isinstance(bounds[0], int | float) and bounds[0] == 0:
            return function.__name__.rstrip("_"), RELU
    return None


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled code would hide its calls; nothing is compiled where the compiler is not loaded."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


class _Watcher(TorchFunctionMode):
    """Calls `on_site(name, kind, inputs, output)` for every activation function's call."""

    def __init__(self, on_site: Callable[[str, str, Any, Tensor], None]) -> None:
        super().__init__()
        self.on_site = on_site
        self.modules: list[tuple[str, nn.Module]] = []
        self.calls: Counter[str] = Counter()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = activation_kind(function, args, kwargs)
        output = function(*args, **kwargs)
        if found is not None:
            self.on_site(self._name(found[0]), found[1], args, output)
        return output

    def _name(self, function: str) -> str:
        path, module = self.modules[-1] if self.modules else ("", None)
        if not type(module).__module__.startswith("torch.nn.modules.activation"):
            path = f"{path}.{function}".lstrip(".")
        self.calls[path] += 1
        return path if self.calls[path] == 1 else f"{path}#{self.calls[path]}"

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Keeps the stack of modules that are running, and restarts the count of calls."""

        def enter(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, _args: Any) -> None:
                if not name:
                    self.calls.clear()
                self.modules.append((name, module))

            return hook

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            self.modules.pop()

        with ExitStack() as hooks:
            for name, module in model.named_modules():
                hooks.enter_context(module.register_forward_pre_hook(enter(name)))
                hooks.enter_context(module.register_forward_hook(leave))
            with _uncompiled(), self:
                yield


@contextmanager
def watch(model: nn.Module, on_site: Callable[[str, str, Tensor], None]) -> Iterator[nn.Module]:
    """Call `on_site(name, kind, output)` at every activation function while `model` runs.

    Args:
        model: any network; wrappers of compilation and distribution are taken off.
        on_site: gets the site's name, its kind (`RELU` or `SMOOTH`) and its output.

    Yields:
        The bare network to run.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with watch(model, lambda name, kind, y: print(name, kind, tuple(y.shape))) as bare:
        ...     _ = bare(torch.ones(1, 2))
        1 relu (1, 3)
    """
    model = bare(model)
    watcher = _Watcher(lambda name, kind, _args, output: on_site(name, kind, output))
    with watcher.following(model):
        yield model


@dataclass(frozen=True)
class Site:
    """One call of an activation function.

    Attributes:
        name: the module's path, or that of the module that made the functional call.
        kind: `RELU` or `SMOOTH`.
        shape: of the output, without the batch.
        sources: weights of the layers it reads, with no other activation between; `""` stands
            for a skip connection or the network's input.
        norm: whether a norm stands between a source and the site.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    sources: frozenset[str]
    norm: bool


@dataclass
class LayerTrace:
    """The surroundings of one layer.

    Attributes:
        before: weights of the nearest layers whose output it reads, through activations.
        reads_input: whether the network's own input is among what it reads.
        reads_nonnegative: whether everything it read was >= 0.
        sites: names of the activation functions that read its output.
        norm: the norm module that reads its output, or None.
    """

    before: frozenset[str] = frozenset()
    reads_input: bool = False
    reads_nonnegative: bool = True
    sites: list[str] = field(default_factory=list)
    norm: str | None = None


@dataclass(frozen=True)
class Trace:
    """Layers and sites of one network, in the order in which they ran."""

    layers: dict[str, LayerTrace]
    sites: dict[str, Site]


@dataclass(frozen=True)
class _Origin:
    """The origin of a tensor: the nearest layers, and those since the last activation."""

    layers: frozenset[str] = frozenset()
    fresh: frozenset[str] = frozenset()
    norm: bool = False


_INPUT = _Origin(frozenset({""}), frozenset({""}))


class _Tracer(_Watcher):
    """Passes the origin of every tensor on from call to call."""

    def __init__(self) -> None:
        super().__init__(self._record_site)
        self.layers: dict[str, LayerTrace] = {}
        self.sites: dict[str, Site] = {}
        self._origins: dict[int, tuple[Tensor, _Origin]] = {}  # keeps tensors, so ids stay unique

    def origin(self, values: Any) -> _Origin:
        found = [
            self._origins[id(leaf)][1]
            for leaf in tree_leaves(values)
            if isinstance(leaf, Tensor) and id(leaf) in self._origins
        ]
        return _Origin(
            frozenset().union(*(o.layers for o in found)),
            frozenset().union(*(o.fresh for o in found)),
            any(o.norm for o in found),
        )

    def mark(self, values: Any, origin: _Origin) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._origins[id(leaf)] = (leaf, origin)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        origin = self.origin((args, kwargs))
        output = super().__torch_function__(function, types, args, kwargs)
        if activation_kind(function, args, kwargs or {}) is not None:
            origin = _Origin(origin.layers, frozenset({""}))
        elif function in _NORMS:
            self._record_norm(origin)
            origin = _Origin(origin.layers, origin.fresh, norm=True)
        if function is Tensor.__setitem__:
            self.mark(args[0], origin)
        elif isinstance(output, Tensor | tuple | list) and origin.layers:
            self.mark(output, origin)
        return output

    def _record_site(self, name: str, kind: str, args: Any, output: Tensor) -> None:
        origin = self.origin(args)
        self.sites[name] = Site(name, kind, tuple(output.shape[1:]), origin.fresh, origin.norm)
        for layer in origin.fresh - {""}:
            self.layers[layer].sites.append(name)

    def _record_norm(self, origin: _Origin) -> None:
        if len(origin.fresh) == 1 and (layer := next(iter(origin.fresh))) in self.layers:
            self.layers[layer].norm = self.modules[-1][0] if self.modules else None

    def layer_hook(self, weight: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            read = self.origin(inputs)
            layer = self.layers.setdefault(weight, LayerTrace())
            layer.before |= read.layers - {""}
            layer.reads_input |= "" in read.layers
            layer.reads_nonnegative &= all(bool((value >= 0).all()) for value in inputs)
            self.mark(output, _Origin(frozenset({weight}), frozenset({weight})))

        return hook


@torch.no_grad()
def trace(model: nn.Module, example: Any, weights: Iterable[str] = ()) -> Trace:
    """Run `model` on one batch and tell which layers feed which activation functions.

    Args:
        model: any network; it is run in evaluation mode and left as it was.
        example: a batch of inputs: a tensor, or a tuple of arguments.
        weights: names of the weights whose layers are traced; sites are, whatever feeds them.

    Returns:
        Layers by the name of their weight, and sites, in running order.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> found = trace(model, torch.ones(1, 2), ["0.weight", "2.weight"])
        >>> found.sites["1"].sources, found.layers["2.weight"].before
        (frozenset({'0.weight'}), frozenset({'0.weight'}))
    """
    model = bare(model)
    args = example if isinstance(example, tuple) else (example,)
    tracer = _Tracer()
    tracer.mark(args, _INPUT)
    with evaluating(model), ExitStack() as hooks:
        for weight in weights:
            owner = model.get_submodule(weight.rpartition(".")[0])
            hook = tracer.layer_hook(weight)
            hooks.enter_context(owner.register_forward_hook(hook, with_kwargs=True))
        with tracer.following(model):
            model(*args)
    return Trace(tracer.layers, tracer.sites)
