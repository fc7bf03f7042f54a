"""What a reader is to those who damage its files, and how valid files are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: of the file in a folder of its own.
        valid: makes inputs that it reads.
        read: reads the file at a path; may raise `UserError` and nothing else.
        text: whether an input is text, whose mutations should be, too.
        needs: packages of an extra.
        every: of so many inputs that are asked for one is tried, where reading takes long.
    """

    name: str
    valid: Callable[[Path], list[bytes]]
    read: Callable[[Path], Any]
    text: bool = False
    needs: tuple[str, ...] = ()
    every: int = 1


def written(write: Callable[[Path], Any], name: str = "made") -> Callable[[Path], bytes]:
    """Makes the bytes of what `write` puts at a path."""

    def make(folder: Path) -> bytes:
        path = folder / name
        write(path)
        return path.read_bytes()

    return make


def parted(folder: Path, write: Callable[[Path], Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and header of a safetensors file."""
    from safetensors import safe_open

    path = folder / "parted.safetensors"
    write(path)
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def with_header(path: Path, tensors: Mapping[str, Any]) -> Path | None:
    """A safetensors file of these tensors under the header that `path` holds as JSON.

    Entries that are no texts are written as JSON. None if it is no header at all.
    """
    from safetensors.torch import save_file

    try:
        said = json.loads(path.read_bytes().decode("utf-8", "replace"))
        header = {k: v if isinstance(v, str) else json.dumps(v) for k, v in said.items()}
        save_file(dict(tensors), path.with_suffix(".safetensors"), header)
    except (ValueError, AttributeError, RecursionError):
        return None
    return path.with_suffix(".safetensors")
