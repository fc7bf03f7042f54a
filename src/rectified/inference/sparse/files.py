"""Sparse weights on disk: a safetensors file that holds the weights that are not zero.

Each tensor is stored in the smallest of three exact forms; n entries, k of them not zero:

    dense  the tensor                                       bytes = 4 n          (float32)
    bits   one bit per entry, and the nonzero values         bytes = n / 8 + 4 k
    gaps   one byte per nonzero, and the nonzero values       bytes = k + 4 k      (long gaps: more)

A gap is the number of zeros before a nonzero, counted from the one before; the byte 255 stands for
255 zeros with no value behind them. So gaps are smaller than bits below a density of about 1/8, and
at 3 % a file takes 3.75 % of the dense one. Tensors are named `name` (dense) or `name:bits`,
`name:gaps` and `name:values`; the header's metadata has `format`, `version` and `tensors`, JSON
with the form, shape and dtype of each tensor. A reader gets plain dense tensors back.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor, nn

from rectified.errors import choose
from rectified.files import write_tensors
from rectified.inference import stored

HEADER = {"format": "rectified-sparse", "version": "1"}
VALUES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MOST_ENTRIES = 2**28  # a gigabyte of float32, whatever the file's size
MOST_ENTRIES_A_BYTE = 256  # in larger files: a density of 0.08 % at 5 bytes per nonzero
_ESCAPE = 255  # this many zeros, and no value


def save_sparse(
    model: nn.Module | Mapping[str, Tensor], path: str | Path, *, values: str = "float32"
) -> int:
    """Write a network's weights without their zeros.

    Args:
        model: a network, or its state_dict.
        path: file to write; it appears whole or not at all.
        values: type of the stored values of sparse float32 tensors: `"float32"` (exact),
            `"float16"` or `"bfloat16"` (half the size, rounded).

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: if `values` is unknown.

    Example:
        >>> import tempfile
        >>> layer = nn.Linear(100, 100)
        >>> with torch.no_grad(): _ = layer.weight.mul_(torch.eye(100))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_sparse(layer, f"{folder}/model.safetensors")
        ...     state = load_sparse(f"{folder}/model.safetensors")
        >>> size < 2_000, torch.equal(state["weight"], layer.weight)
        (True, True)
    """
    choose("type of values", values, tuple(VALUES))
    state = model.state_dict() if isinstance(model, nn.Module) else model
    written: dict[str, Tensor] = {}
    contents: dict[str, dict[str, Any]] = {}
    for name, tensor in state.items():
        forms = _encoded(tensor.detach().cpu(), VALUES[values])
        form = next(iter(forms))
        contents[name] = {
            "form": form,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
        }
        written |= {_key(name, part): data for part, data in forms.items()}
    metadata = {**HEADER, "tensors": json.dumps(contents)}
    write_tensors(Path(path), written, metadata)
    return os.path.getsize(path)


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Read what `save_sparse` wrote.

    Args:
        path: the file.

    Returns:
        A plain state_dict of dense tensors, for `load_state_dict`.

    Raises:
        UserError: if the file is missing, truncated, of another kind or of another version.
    """
    parts, metadata = stored.read(path)
    stored.check_header(path, metadata, HEADER, "save_sparse")
    with stored.damage_named(path):
        contents = json.loads(metadata["tensors"])
        _check_size(path, contents)
        return {name: _decoded(name, entry, parts) for name, entry in contents.items()}


def _check_size(path: str | Path, contents: Mapping[str, Any]) -> None:
    """Zeros cost nothing in the file, but memory here."""
    entries = sum(math.prod(entry["shape"]) for entry in contents.values())
    if entries > max(MOST_ENTRIES, MOST_ENTRIES_A_BYTE * os.path.getsize(path)):
        raise ValueError(f"it says that it holds {entries} entries, too many for its size")


def _key(name: str, part: str) -> str:
    return name if part == "dense" else f"{name}:{part}"


def _encoded(tensor: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The parts of the smallest form, its name first."""
    dense = {"dense": tensor.clone().contiguous()}
    if not tensor.is_floating_point():
        return dense
    flat = tensor.reshape(-1)
    kept = flat != 0
    values = flat[kept]
    if values.dtype == torch.float32:
        values = values.to(dtype)
    forms = [
        dense,
        {"bits": _bits(kept), "values": values},
        {"gaps": _gaps(kept), "values": values},
    ]
    return min(forms, key=lambda parts: sum(part.nbytes for part in parts.values()))


def _bits(kept: Bool[Tensor, " entries"]) -> UInt8[Tensor, " bytes"]:
    return torch.from_numpy(np.packbits(kept.numpy()))


def _gaps(kept: Bool[Tensor, " entries"]) -> UInt8[Tensor, " bytes"]:
    """One byte per nonzero, and one more for every 255 zeros before it.

    Example:
        >>> kept = torch.zeros(600, dtype=torch.bool)
        >>> kept[[0, 3, 599]] = True
        >>> _gaps(kept).tolist()
        [0, 2, 255, 255, 85]
    """
    zeros = np.diff(np.flatnonzero(kept.numpy()), prepend=-1) - 1
    escapes, rest = np.divmod(zeros, _ESCAPE)
    gaps = np.full(len(zeros) + escapes.sum(), _ESCAPE, np.uint8)
    gaps[np.cumsum(escapes + 1) - 1] = rest
    return torch.from_numpy(gaps)


def _decoded(name: str, entry: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Tensor:
    dtype = getattr(torch, entry["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{entry['dtype']!r} is no dtype")
    shape = tuple(entry["shape"])
    if entry["form"] == "dense":
        return parts[name].to(dtype).reshape(shape)
    count = math.prod(shape)
    data = parts[_key(name, entry["form"])].numpy()
    positions = _from_bits(data, count) if entry["form"] == "bits" else _from_gaps(data)
    values = parts[_key(name, "values")]
    if len(positions) != len(values) or (len(positions) and positions[-1] >= count):
        raise ValueError(f"positions and values of {name!r} do not fit")
    tensor = torch.zeros(count, dtype=dtype)
    tensor[torch.from_numpy(positions)] = values.to(dtype)
    return tensor.reshape(shape)


def _from_bits(data: np.ndarray, count: int) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(data, count=count))


def _from_gaps(data: np.ndarray) -> np.ndarray:
    steps = data.astype(np.int64) + (data != _ESCAPE)
    return np.cumsum(steps)[data != _ESCAPE] - 1
