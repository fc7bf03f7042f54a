"""Checkpoints: nested values and tensors in one safetensors file, with a hash.

Reading one executes nothing, and a damaged one is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rectified.errors import UserError, first_line
from rectified.files import from_json, read_tensors, write_tensors


def save_tree(path: Path, tree: Any) -> None:
    """Store nested dicts, lists and tuples of tensors and plain values in one safetensors file.

    A tensor that occurs more than once is stored once. Tuples come back as lists.

    Raises:
        TypeError: for a value that is neither a tensor nor plain.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            place = value.data_ptr() if value.numel() else id(value)
            key = (place, value.shape, value.stride(), value.dtype)
            name = names.setdefault(key, f"t{len(names)}")
            if name not in tensors:
                tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[encode(key), encode(entry)] for key, entry in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [encode(entry) for entry in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise TypeError(f"cannot store a {type(value).__name__}")

    skeleton = json.dumps(encode(tree))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"tree": skeleton, "sha256": _hash(skeleton, tensors)})


def _hash(skeleton: str, tensors: Mapping[str, Any]) -> str:
    """Of a whole tree: bits that flip on a disk are told from a state that training reached."""
    import torch

    digest = hashlib.sha256(skeleton.encode())
    for name in sorted(tensors):
        whole = tensors[name].contiguous()
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        if whole.numel():
            digest.update(memoryview(whole.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def load_tree(path: Path) -> Any:
    """Read what `save_tree` stored.

    Raises:
        UserError: if the file is damaged or was not written by `save_tree`.
    """
    try:
        tensors, about = read_tensors(path)
        if _hash(about["tree"], tensors) != about["sha256"]:
            raise ValueError("its hash is another")
        return _decode(from_json(about["tree"]), tensors)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged or not a checkpoint of ours ({first_line(error)})"
        ) from error


def _decode(node: Any, tensors: Mapping[str, Any]) -> Any:
    (kind, value), *_ = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {_decode(key, tensors): _decode(entry, tensors) for key, entry in value}
    if kind == "list":
        return [_decode(entry, tensors) for entry in value]
    return value


class FileStore:
    """One entry of a checkpoint folder: a tree in a file. Fits `rectified.training.Store`."""

    def __init__(self, path: Path, *, writer: bool = True) -> None:
        self.path = path
        self.writer = writer

    def load(self) -> Any | None:
        """The saved state, or None."""
        return load_tree(self.path) if self.path.exists() else None

    def save(self, state: Any, /) -> None:
        """Replace what was saved."""
        if self.writer:
            save_tree(self.path, state)
