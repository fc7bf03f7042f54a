"""A pruned network made lean, stored, loaded back, and measured against the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.inference.compact import compaction
from rectified.inference.sparse import SparseModel, sparsify
from rectified.jobs.classifiers import Architecture
from rectified.jobs.deploy.export import GRAPH, export
from rectified.jobs.deploy.lean import WEIGHTS, load_lean, save_lean
from rectified.jobs.deploy.onnx_layers import onnx_milliseconds
from rectified.runs import Run
from rectified.timing import interleaved, medians
from rectified.training import logits_of

BATCHES = (1, 16)
ROUNDS = 15
QUIET = 0.06  # seconds for which the threads of a way may occupy their cores after a call
SECONDS_PER_ROUND = 0.02  # long against the clock, short against what else the machine does

Layer = dict[str, Any]


@dataclass(frozen=True)
class Deployment:
    """The measures of a deployment.

    Attributes:
        sizes: bytes_dense, bytes_lean, max_abs_difference and milliseconds, as in results.json.
        parameters: of the network at full size, of the compact one, and of these the nonzero.
        layers: one dict per layer: channels before and after, engine and times at each batch.
        notes: what could not be done, and why.
    """

    sizes: dict[str, Any]
    parameters: dict[str, int]
    layers: list[Layer]
    notes: list[str]


def deploy(
    network: nn.Module,
    architecture: Architecture,
    inputs: Float[Tensor, "examples ..."],
    folder: Run,
    *,
    never_fires: Mapping[str, Tensor] | None = None,
    dense_file: str = "model.safetensors",
) -> Deployment:
    """Make the lean network, store it, load it back, and measure it against `network`.

    Args:
        network: the pruned network at full size, its pruned weights zero.
        architecture: how it was built.
        inputs: real examples, at least 16: outputs are compared and times taken on them.
        folder: where the files go; `dense_file` is there already.
        never_fires: units that never fired, by activation: an empirical claim; see `compaction`.
        dense_file: the full-size weights, whose size the lean file is compared with.

    Returns:
        What was measured.
    """
    network, inputs = network.to("cpu").eval(), inputs.to("cpu").float()
    compact, layers, remarks = _compacted(network, inputs, never_fires)
    save_lean(compact, architecture, folder.path)
    session, about_onnx = export(compact, inputs, folder.path / GRAPH)
    loaded = load_lean(folder.path, network)
    lean = {batch: sparsify(loaded, inputs[:batch]) for batch in BATCHES}
    sizes = {
        "bytes_dense": (folder.path / dense_file).stat().st_size,
        "bytes_lean": (folder.path / WEIGHTS).stat().st_size,
        "max_abs_difference": _difference(network, [loaded, *lean.values()], inputs),
        "milliseconds": {
            f"batch_{batch}": _milliseconds(network, compact, lean[batch], session, inputs[:batch])
            for batch in BATCHES
        },
    }
    engines = _with_engines(layers, lean, compact, inputs)
    notes = [*remarks, *about_onnx, *(_chosen(batch, model) for batch, model in lean.items())]
    return Deployment(sizes, _parameters(network, compact), engines, notes)


def _compacted(
    network: nn.Module, inputs: Tensor, never_fires: Mapping[str, Tensor] | None
) -> tuple[nn.Module, list[Layer], list[str]]:
    """The network without empty channels; as it is, with a note, if its graph cannot be read."""
    try:
        made = compaction(network, inputs[:64], never_fires=never_fires)
    except UserError as error:
        return network, [], [f"no channel was removed: {error}"]
    names = ("name", "inputs", "outputs", "stays")
    return made.model, [{name: getattr(one, name) for name in names} for one in made.layers], []


def _parameters(network: nn.Module, compact: nn.Module) -> dict[str, int]:
    return {
        "dense": sum(parameter.numel() for parameter in network.parameters()),
        "compact": sum(parameter.numel() for parameter in compact.parameters()),
        "nonzero": sum(int(parameter.count_nonzero()) for parameter in compact.parameters()),
    }


@torch.no_grad()
def _difference(network: nn.Module, others: Sequence[nn.Module], inputs: Tensor) -> float:
    expected = logits_of(network(inputs))
    return max(float((logits_of(other(inputs)) - expected).abs().max()) for other in others)


def _milliseconds(
    network: nn.Module,
    compact: nn.Module,
    lean: SparseModel,
    session: Any | None,
    inputs: Tensor,
) -> dict[str, float]:
    """Median times, the ways taking turns."""
    ways: dict[str, Callable[[], object]] = {
        "dense": lambda: network(inputs),
        "compact": lambda: compact(inputs),
        "lean": lambda: lean(inputs),
    }
    if session is not None:
        feed = {session.get_inputs()[0].name: inputs.numpy()}
        ways["onnxruntime"] = lambda: session.run(None, feed)
    with torch.no_grad():
        taken = interleaved(ways, rounds=ROUNDS, at_least=SECONDS_PER_ROUND, quiet=_quiet())
    return {name: 1000 * seconds for name, seconds in medians(taken).items()}


def _quiet() -> float:
    """Seconds to wait before a call, for the threads of another to come to rest."""
    return QUIET if torch.get_num_threads() > 1 else 0.0


def _with_engines(
    layers: Sequence[Layer], lean: Mapping[int, SparseModel], compact: nn.Module, inputs: Tensor
) -> list[Layer]:
    """The layers, with the engine that runs each at every batch, and the times of all engines."""
    by_name = {layer["name"]: dict(layer) for layer in layers}
    for batch, model in lean.items():
        others = onnx_milliseconds(compact, inputs[:batch], _quiet())
        for choice in model.layers:
            layer = by_name.setdefault(choice.name, {"name": choice.name})
            layer |= {"density": choice.density, "reason": choice.reason}
            layer.setdefault("engines", {})[f"batch_{batch}"] = choice.engine
            times = dict(choice.milliseconds)
            if choice.name in others:
                times["onnxruntime"] = others[choice.name]
            layer.setdefault("milliseconds", {})[f"batch_{batch}"] = times
    return list(by_name.values())


def _chosen(batch: int, model: SparseModel) -> str:
    remark = f" ({model.note})" if model.note else ""
    return f"at batch {batch} the network runs as {model.chosen!r}{remark}"
