"""The best network of `rectified binarize` on bits: stored, loaded back, held against the original.

    packed.safetensors   signs as bits, thresholds, what stays in full precision, and the graph

`rectified.inference.load(path)` gives the network back, in a process that knows neither the
architecture nor the training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.inference.bits import load_packed, pack, save_packed
from rectified.runs import Run
from rectified.timing import interleaved, medians
from rectified.training import logits_of

WEIGHTS = "packed.safetensors"
BATCHES = (1, 16)
ROUNDS = 15
SECONDS_PER_ROUND = 0.02  # long against the clock, short against what else the machine does


@dataclass
class Packing:
    """The outcome and the measures of packing.

    Attributes:
        sizes: bytes_float, bytes_packed, max_abs_difference and milliseconds, as in results.json.
        layers: one dict per layer: how it runs, bytes before and after.
        agreement: share of the examples to which both networks give the same class.
        notes: what could not be done, and why.
    """

    sizes: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    agreement: float = 0.0
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def pack_and_measure(
    network: nn.Module,
    inputs: Float[Tensor, "examples ..."],
    folder: Run,
    *,
    float_file: str = "model.safetensors",
) -> Packing:
    """Pack a network, store it, load it back, and measure it against the original.

    Args:
        network: with 1-bit layers.
        inputs: real examples: outputs are compared and times taken on them.
        folder: where the file goes; `float_file` is there already.
        float_file: the network in floating point, whose size the packed file is compared with.
    """
    network = network.to("cpu").eval()
    inputs = inputs.to("cpu").float().contiguous()
    save_packed(pack(network), folder.path / WEIGHTS)
    packed = load_packed(folder.path / WEIGHTS)
    expected, given = logits_of(network(inputs)), logits_of(packed(inputs))
    return Packing(
        {
            "bytes_float": (folder.path / float_file).stat().st_size,
            "bytes_packed": (folder.path / WEIGHTS).stat().st_size,
            "max_abs_difference": float((expected - given).abs().max()),
            "milliseconds": {
                f"batch_{batch}": _milliseconds(network, packed, inputs[:batch])
                for batch in BATCHES
            },
        },
        [vars(layer) for layer in packed.layers],
        float((expected.argmax(1) == given.argmax(1)).double().mean()),
        [f"{torch.get_num_threads()} threads", *packed.notes],
    )


def _milliseconds(network: nn.Module, packed: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Median times, the ways taking turns."""
    last = inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs
    ways: dict[str, Callable[[], object]] = {
        "float": lambda: network(inputs),
        "channels_last": lambda: network(last),
        "packed": lambda: packed(inputs),
    }
    taken = medians(interleaved(ways, rounds=ROUNDS, at_least=SECONDS_PER_ROUND))
    return {name: 1000 * seconds for name, seconds in taken.items()}
