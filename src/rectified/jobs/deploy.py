"""Deployment: a pruned network made small, stored small, run fast, and held against the original.

    lean.safetensors   weights without zeros, of the network without its empty channels
    lean.onnx          the same network for other engines, where the extra `onnx` is installed
    lean.json          what it takes to build the architecture again

`load_lean(folder)` gives the network back, in a process that knows nothing of the training.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.inference.compact import compaction, resize
from rectified.inference.sparse import SparseModel, load_sparse, save_sparse, sparsify
from rectified.jobs.classifiers import recipe
from rectified.jobs.deploy_layers import onnx_milliseconds
from rectified.runs import Run, write_text
from rectified.training import logits_of

WEIGHTS, GRAPH, ABOUT = "lean.safetensors", "lean.onnx", "lean.json"
MOST = 100_000  # classes, channels or pixels along a side, that a file may ask for
BATCHES = (1, 16)
ROUNDS = 15
QUIET = 0.06  # seconds for which the threads of a way may occupy their cores after a call
SECONDS_A_ROUND = 0.02  # long against the clock, short against what else the machine does


@dataclass(frozen=True)
class Architecture:
    """What `rectified.jobs.classifiers.build` made a network from.

    Attributes:
        model: a recipe's name, or `module:factory`.
        num_classes: classes that it tells apart.
        in_channels: channels of its images.
        image_size: their height and width.
        norm: whether it has batch norms.
    """

    model: str
    num_classes: int
    in_channels: int
    image_size: tuple[int, int]
    norm: bool


@dataclass
class Deployment:
    """What deployment did and measured.

    Attributes:
        sizes: bytes_dense, bytes_lean, max_abs_difference and milliseconds, as in results.json.
        parameters: of the network at full size, of the compact one, and of these the nonzero.
        layers: one dict a layer: channels before and after, engine and times at each batch.
        notes: what could not be done, and why.
    """

    sizes: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    found = Deployment()
    network = network.to("cpu").eval()
    inputs = inputs.to("cpu").float()
    compact = _compact(network, inputs, never_fires, found)
    found.parameters = {
        "dense": _count(network),
        "compact": _count(compact),
        "nonzero": sum(int(p.count_nonzero()) for p in compact.parameters()),
    }
    save_sparse(compact, folder.path / WEIGHTS)
    write_text(folder.path / ABOUT, json.dumps(asdict(architecture), indent=1))
    session = _export(compact, inputs, folder.path / GRAPH, found)
    loaded = load_lean(folder.path, network)
    lean = {batch: sparsify(loaded, inputs[:batch]) for batch in BATCHES}
    found.sizes = {
        "bytes_dense": (folder.path / dense_file).stat().st_size,
        "bytes_lean": (folder.path / WEIGHTS).stat().st_size,
        "max_abs_difference": _difference(network, [loaded, *lean.values()], inputs),
        "milliseconds": {
            f"batch_{batch}": _milliseconds(network, compact, lean[batch], session, inputs[:batch])
            for batch in BATCHES
        },
    }
    _note_engines(lean, compact, inputs, found)
    return found


def load_lean(folder: Path, network: nn.Module | None = None) -> nn.Module:
    """The lean network of a run, in evaluation mode, as a plain module.

    Pass it to `rectified.inference.sparsify` to run it fast.

    Args:
        folder: a run's folder with `lean.safetensors` and `lean.json`.
        network: a network of the architecture at full size; it is built anew by default, for a
            model of ours. Anybody's `module:factory` must be passed, since building it runs code.

    Raises:
        UserError: if a file is missing or damaged, or the network must be passed.
    """
    state = load_sparse(folder / WEIGHTS)
    return resize(_architecture(folder) if network is None else network, state).eval()


def _architecture(folder: Path) -> nn.Module:
    try:
        about = Architecture(**json.loads((folder / ABOUT).read_text()))
        sizes = (about.num_classes, about.in_channels, *about.image_size)
        if not isinstance(about.model, str) or len(sizes) != 4:
            raise ValueError("a field is of another type")
        if not all(type(size) is int and 0 < size <= MOST for size in sizes):
            raise ValueError(f"sizes must be in 1..{MOST}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / ABOUT} cannot be read ({error}): pass the network") from error
    if ":" in about.model:
        raise UserError(f"model {about.model!r} is not ours: pass the network to load_lean")
    with torch.random.fork_rng([]):  # its initial weights are replaced
        return recipe(about.model).build(
            num_classes=about.num_classes,
            in_channels=about.in_channels,
            image_size=tuple(about.image_size),
            norm=about.norm,
        )


def _compact(
    network: nn.Module, inputs: Tensor, never_fires: Mapping[str, Tensor] | None, found: Deployment
) -> nn.Module:
    """The network without empty channels; as it is, with a note, if its graph cannot be read."""
    try:
        made = compaction(network, inputs[:64], never_fires=never_fires)
    except UserError as error:
        found.notes.append(f"no channel was removed: {error}")
        return network
    found.layers = [
        {
            "name": layer.name,
            "inputs": layer.inputs,
            "outputs": layer.outputs,
            "stays": layer.stays,
        }
        for layer in made.layers
    ]
    return made.model


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def _difference(network: nn.Module, others: Sequence[nn.Module], inputs: Tensor) -> float:
    expected = logits_of(network(inputs))
    return max(float((logits_of(other(inputs)) - expected).abs().max()) for other in others)


def _export(compact: nn.Module, inputs: Tensor, path: Path, found: Deployment) -> Any | None:
    """The ONNX file and a session on it, or None and a note."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch's exporter needs
    except ImportError:
        found.notes.append('no ONNX file: pip install "rectified[onnx]"')
        return None
    try:
        with _silence():
            torch.onnx.export(
                compact,
                (inputs[:2],),
                path,
                dynamo=True,
                input_names=["images"],
                dynamic_shapes=({0: "batch"},),
                external_data=False,
                verbose=False,
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = session.run(None, {session.get_inputs()[0].name: inputs[:16].numpy()})[0]
    except Exception as error:  # the exporter has many ways to refuse a graph
        found.notes.append(f"no ONNX file: {str(error).splitlines()[0][:200]}")
        path.unlink(missing_ok=True)
        return None
    with torch.no_grad():
        expected = logits_of(compact(inputs[:16])).numpy()
    if not np.allclose(given, expected, atol=1e-4):
        off = float(np.abs(given - expected).max())
        found.notes.append(f"onnxruntime's outputs differ by {off:.1e}")
    return session


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter warns about packages that we do not need and about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


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
    times: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for way in ways.values():
            way()
        for _ in range(ROUNDS):
            for name, way in ways.items():
                if torch.get_num_threads() > 1:
                    time.sleep(QUIET)
                    way()  # wakes its own threads
                times[name].append(_time(way))
    return {name: 1000 * statistics.median(taken) for name, taken in times.items()}


def _time(way: Callable[[], object]) -> float:
    """Seconds a call, over as many calls as fill a round."""
    started = time.perf_counter()
    calls = 0
    while (spent := time.perf_counter() - started) < SECONDS_A_ROUND:
        way()
        calls += 1
    return spent / calls


def _note_engines(
    lean: Mapping[int, SparseModel], compact: nn.Module, inputs: Tensor, found: Deployment
) -> None:
    by_name = {layer["name"]: layer for layer in found.layers}
    quiet = QUIET if torch.get_num_threads() > 1 else 0.0
    for batch, model in lean.items():
        others = onnx_milliseconds(compact, inputs[:batch], quiet)
        for choice in model.layers:
            layer = by_name.setdefault(choice.name, {"name": choice.name})
            layer |= {"density": choice.density, "reason": choice.reason}
            layer.setdefault("engines", {})[f"batch_{batch}"] = choice.engine
            times = dict(choice.milliseconds)
            if choice.name in others:
                times["onnxruntime"] = others[choice.name]
            layer.setdefault("milliseconds", {})[f"batch_{batch}"] = times
        found.notes.append(
            f"at batch {batch} the network runs as {model.chosen!r}"
            + (f" ({model.note})" if model.note else "")
        )
    found.layers = list(by_name.values())
