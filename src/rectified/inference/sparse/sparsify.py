"""Run an unstructured-sparse network faster than the dense one.

Pruning single weights leaves tensors of the same shape, and a dense engine multiplies by the zeros
as before. `sparsify(model, example)` returns a module that computes the same outputs (to about 1e-6
of the largest, float32) and skips the zeros where that is faster:

1. norms behind layers are folded into them;
2. every Linear and Conv2d is run by every engine that can (see `engines`), on the very input
   that the example gives it, and the fastest is noted; a sparse engine must win by a tenth;
3. the network is run whole in several ways: dense, dense with channels last, each layer on its
   own engine, and stretches of layers compiled into sparse programs (see `program`): "mixed"
   without the layers that were faster dense, "fused" with them, "fused_serial" the same on the
   caller's thread alone. The fastest of all is returned.

So the result is never slower than the dense network beyond the noise of the measurement. What was
chosen, and from which times, stands in `layers` and `milliseconds`, and in `table()`.

    fast = sparsify(model, example)      # a module, for inference
    print(fast.table())

The choice is made for the example's shape and batch; other batches and sizes of images give right
outputs too, and what has other numbers of axes or channels is refused. Each way must give the dense
network's outputs on the example, or it is not taken and a note says why. The result takes float32
on the CPU, has no gradient, and is safe with threads, forks, pickles and `copy.deepcopy`. To store
a network, use `save_sparse` on the original.

References:
    E. Elsen, M. Dukhan, T. Gale, K. Simonyan, "Fast Sparse ConvNets", 2019, arXiv:1911.09723:
    sparse 1x1 convolutions on planes, channel by channel.
    J. Park et al., "Faster CNNs with Direct Sparse Convolutions and Guided Pruning", 2016,
    arXiv:1608.01409: a nonzero as an offset into the padded input.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from rectified.errors import UserError, choose, first_line
from rectified.graphs.copies import agree, call_layers_, plain_copy
from rectified.graphs.shapes import trace_graph
from rectified.inference.batch_norm import fold_norms_
from rectified.inference.kernels import has_kernels
from rectified.inference.sparse.engines import ChannelsLast, engines, reason_for_dense

SPARSE_ENGINES = ("kernel", "csr")
NETWORKS = ("dense", "channels_last", "layers", "mixed", "fused", "fused_serial")
MARGIN = 1.1  # how many times faster a sparse engine must be to be taken
_SECONDS = 0.05  # of measurement for each layer, if its engines allow
_ROUNDS = 3
_QUIET = 0.012  # seconds for which OpenMP's threads still occupy their cores after a call


@dataclass(frozen=True)
class LayerChoice:
    """The choice for one layer, and its reason.

    Args:
        name: the layer's path in the network.
        kind: its type.
        shape: of its weight.
        density: share of its weights that are not zero, in [0, 1].
        engine: the engine chosen, see `engines`.
        milliseconds: median time of each engine on the example.
        reason: why the kernels were not measured; empty if they were.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float
    engine: str
    milliseconds: dict[str, float]
    reason: str = ""


class SparseModel(nn.Module):
    """A network as `sparsify` returns it.

    Args:
        network: what runs.
        chosen: one of `NETWORKS`.
        layers: what was chosen for each layer if it ran alone.
        milliseconds: median time of each way to run the network whole, on the example.
        note: which ways could not be taken, and why; empty if all could.
    """

    def __init__(
        self,
        network: nn.Module,
        chosen: str,
        layers: Sequence[LayerChoice],
        milliseconds: Mapping[str, float],
        note: str = "",
    ) -> None:
        super().__init__()
        self.network = network
        self.chosen, self.note = chosen, note
        self.layers, self.milliseconds = tuple(layers), dict(milliseconds)
        self.train(False)

    def train(self, mode: bool = True) -> SparseModel:
        """Nothing: a network that is part of one in training still is for inference."""
        return super().train(False)

    def forward(self, *inputs: Tensor) -> Any:
        network = self._modules["network"]  # plain attribute access searches three dictionaries
        assert network is not None
        if not torch.is_grad_enabled():  # to enter a context costs microseconds
            return network(*inputs)
        with torch.no_grad():
            return network(*inputs)

    def table(self) -> str:
        """The choices as text, one line per layer and one for the network."""
        rows = [
            (c.name, c.kind, "x".join(map(str, c.shape)), f"{c.density:.3f}", c.engine, _times(c))
            for c in self.layers
        ]
        head = ("layer", "type", "weight", "density", "engine", "milliseconds")
        widths = [max(len(row[k]) for row in [head, *rows]) for k in range(5)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row[:5], widths, strict=True)), row[5]])
            for row in [head, *rows]
        ]
        times = ", ".join(f"{name} {value:.3f}" for name, value in self.milliseconds.items())
        lines.append(f"network: {self.chosen} ({times})" + (f"; {self.note}" if self.note else ""))
        return "\n".join(lines)

    def extra_repr(self) -> str:
        return f"chosen={self.chosen!r}"


def _times(choice: LayerChoice) -> str:
    times = ", ".join(f"{name} {value:.3f}" for name, value in choice.milliseconds.items())
    return "; ".join(part for part in (times, choice.reason) if part)


def sparsify(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    threads: int | None = None,
    engine: Mapping[str, str] | None = None,
    network: str | None = None,
) -> SparseModel:
    """Return a copy of a network that runs with the fastest exact engines.

    Args:
        model: a network whose pruned weights are zero, float32 on the CPU; it stays as it is. A
            layer alone has the path `"0"`.
        example: one input, or a tuple of the forward's arguments, of the batch to be fast at.
        threads: how many threads the kernels may use; PyTorch's number by default. PyTorch's own
            engines always use PyTorch's number.
        engine: engines to take for given layers whatever they cost, by the layer's path.
        network: one of `NETWORKS` to take whatever it costs; the fastest by default.

    Returns:
        A module in evaluation mode, for inference.

    Raises:
        UserError: if a weight is NaN or infinite, an argument names what does not exist, or the
            network is not float32 on the CPU.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> x = torch.ones(4, 64)
        >>> fast = sparsify(model, x)
        >>> torch.allclose(fast(x), model(x), atol=1e-5)
        True
        >>> [choice.name for choice in fast.layers]
        ['0', '2']
    """
    _check(model)
    inputs = example if isinstance(example, tuple) else (example,)
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    forced = dict(engine or {})
    with torch.no_grad():
        copied = plain_copy(model).eval()
        # Tracing looks into the root, so a layer alone needs one around it.
        whole = nn.Sequential(copied) if _is_layer(copied) else copied
        dense, notes = _prepared(whole, inputs)
        layers = _choices(dense, inputs, forced, threads)
        ways = _networks(dense, layers, forced, threads)
        ways = _working(ways, inputs, whole(*inputs), notes)
        if not ways:
            raise UserError("no engine is left: " + "; ".join(notes))
        if network is not None:
            ways = {network: ways[choose("network", network, tuple(ways))]}
        milliseconds = _measured({name: _call(way, inputs) for name, way in ways.items()}, threads)
    chosen = _fastest(milliseconds, tuple(set(NETWORKS) - {"dense", "channels_last"}))
    return SparseModel(ways[chosen], chosen, layers, milliseconds, "; ".join(notes))


def _check(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if not torch.isfinite(tensor).all():
            raise UserError(f"weights must be finite, got NaN or infinity in {name!r}")
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise UserError(
                f"weights must be float32 on the CPU, got {tensor.dtype} on {tensor.device} "
                f"in {name!r}"
            )


def _prepared(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, list[str]]:
    """The network with its norms folded, or as it is and the reason."""
    try:
        traced = trace_graph(model, inputs)
    except UserError as error:
        return model, [str(error)]
    if not agree(model(*inputs), traced(*inputs)):
        name = type(model).__name__
        return model, [f"what torch.fx sees of {name} computes something else than {name}"]
    fold_norms_(traced)
    return traced, []


def _working(
    ways: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], expected: Any, notes: list[str]
) -> dict[str, nn.Module]:
    """The ways that run and compute what is expected; the others are noted."""
    working = {}
    for name, way in ways.items():
        try:
            is_right = agree(expected, way(*inputs))
        except Exception as error:  # somebody's forward may ask a layer for what an engine lacks
            notes.append(f"the way {name!r} does not run: {first_line(error)}")
            continue
        if is_right or name == "dense":
            working[name] = way
        else:
            notes.append(f"the way {name!r} has other outputs on the example")
    return working


def _choices(
    network: nn.Module, inputs: tuple[Tensor, ...], forced: Mapping[str, str], threads: int
) -> list[LayerChoice]:
    seen = _layer_inputs(network, inputs)
    for name in forced:
        choose("layer", name, list(seen))
    return [
        _choice(name, network.get_submodule(name), x, forced.get(name), threads)
        for name, x in seen.items()
    ]


def _layer_inputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
    """The first input that each layer gets on the example; None for one that is not called."""
    seen: dict[str, Tensor | None] = {
        name: None for name, layer in network.named_modules() if _is_layer(layer)
    }

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[name] = arguments[0] if seen[name] is None else seen[name]

        return network.get_submodule(name).register_forward_pre_hook(hook)

    handles = [watch(name) for name in seen]
    network(*inputs)
    for handle in handles:
        handle.remove()
    return seen


def _is_layer(module: nn.Module) -> bool:
    transposed = nn.modules.conv._ConvTransposeNd
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | transposed)


def _choice(
    name: str, layer: nn.Module, x: Tensor | None, forced: str | None, threads: int
) -> LayerChoice:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    density = (weight != 0).double().mean().item()
    ways = engines(layer, threads)
    if forced is not None:
        choose(f"engine of {name!r}", forced, list(ways))
        ways = {forced: ways[forced]}
    if x is None:
        times, reason = {"dense": 0.0}, "not called on the example"
    else:
        times = _measured({kind: _call(make(), (x,)) for kind, make in ways.items()}, threads)
        reason = reason_for_dense(layer)
    best = _fastest(times, SPARSE_ENGINES)
    return LayerChoice(
        name, type(layer).__name__, tuple(weight.shape), density, best, times, reason
    )


def _networks(
    dense: nn.Module,
    layers: Sequence[LayerChoice],
    forced: Mapping[str, str],
    threads: int,
) -> dict[str, nn.Module]:
    """The ways to run the network whole."""
    by_layer = _with_engines(dense, layers, threads)
    ways = {} if forced else {"dense": dense, "channels_last": ChannelsLast(deepcopy(dense))}
    ways["layers"] = by_layer
    if not has_kernels() or not isinstance(dense, fx.GraphModule):
        return ways
    from rectified.inference.sparse.network import segmented

    slower = {choice.name for choice in layers if choice.engine != "kernel"}
    barred = {name for name, kind in forced.items() if kind != "kernel"}
    others = [choice for choice in layers if choice.name in slower]
    mixed = _with_engines(dense, others, threads)
    kept = _with_engines(dense, [c for c in layers if c.name in barred], threads)
    assert isinstance(mixed, fx.GraphModule)
    assert isinstance(kept, fx.GraphModule)
    ways["mixed"] = segmented(mixed, slower, threads)
    ways["fused"] = segmented(kept, barred, threads)
    if threads > 1:
        ways["fused_serial"] = segmented(kept, barred, 1)
    return ways


def _with_engines(network: nn.Module, layers: Sequence[LayerChoice], threads: int) -> nn.Module:
    copied = deepcopy(network)
    if isinstance(network, fx.GraphModule) and isinstance(copied, fx.GraphModule):
        for old, new in zip(network.graph.nodes, copied.graph.nodes, strict=True):
            new.meta = dict(old.meta)
    for choice in layers:
        layer = network.get_submodule(choice.name)
        if choice.engine != "dense":
            copied.set_submodule(choice.name, engines(layer, threads)[choice.engine]())
    if any(choice.engine != "dense" for choice in layers):
        call_layers_(copied)
    return copied


def _call(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    return lambda: module(*inputs)


def _measured(calls: Mapping[str, Callable[[], object]], threads: int) -> dict[str, float]:
    """Median milliseconds of each call, in rounds that interleave them."""
    slowest = max(_seconds(call) for call in calls.values())
    repeats = min(20, max(2, round(_SECONDS / (_ROUNDS * slowest * len(calls)))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            if threads > 1:
                time.sleep(_QUIET)
            call()  # brings its data into the cache and wakes its threads, as in a loop
            times[name] += [_seconds(call) for _ in range(repeats)]
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def _seconds(call: Callable[[], object]) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def _fastest(milliseconds: Mapping[str, float], sparse: Sequence[str]) -> str:
    def handicapped(name: str) -> float:
        return milliseconds[name] * (MARGIN if name in sparse else 1.0)

    return min(milliseconds, key=handicapped)
