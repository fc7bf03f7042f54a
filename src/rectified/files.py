"""Files: written whole or not at all, and not believed before they are checked.

    with atomic(path) as temporary: ...       # takes its name at the end, if all went well
    with atomic_folder(path) as temporary: ...
    write_text(path, text)
    write_tensors(path, tensors, metadata)    # safetensors
    to_json(value)                            # strict JSON of nested values

Readers execute nothing in what they read, and have one exception for all that can be wrong with it.

    read_json(path)
    read_tensors(path)                        # safetensors, and what the file says of itself
    read_arrays(path)                         # .npz

A few kilobytes can say that they hold terabytes: a zip archive whose entries grow when they are
read, weights whose description asks for a network of 10^12 of them. Both are refused before
anything is made.

    check_archive(path, stored=True)          # entries no larger than the file could hold
    check_gzip(path)                          # the same of one compressed file
    with_no_weights(lambda: Network(**said))  # the network's shapes; nothing is allocated
"""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

from rectified.errors import UserError, first_line

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

TEMPORARY = ".tmp"  # the suffix of a file that is being written
FREE_BYTES = 2**28  # what an archive may hold in any case
GROWTH = 30  # times the file: coordinates and weights compress by less than two, zeros by 1000


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name at the end, if all went well.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic(target) as temporary: _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    temporary = _beside(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # some writers make files that only the owner may read
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say where; the temporary name says little
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place at the end, if all went well.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "parts"
        >>> with atomic_folder(target) as temporary: _ = (temporary / "a.txt").write_text("whole")
        >>> [entry.name for entry in target.iterdir()]
        ['a.txt']
    """
    temporary = _beside(path)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed and had our number
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)  # a folder that is not empty cannot be replaced
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as temporary:
        # a name from a file system need not be text; what it is shown as is JSON's escape, too
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all."""
    from safetensors.torch import save

    with atomic(path) as temporary:
        # not `save_file`, whose exception does not say that the disk is full
        temporary.write_bytes(save(dict(tensors), None if metadata is None else dict(metadata)))


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON; numbers that are not finite become null.

    Example:
        >>> to_json({"a": float("nan"), "b": (1, 2)})
        '{"a": null, "b": [1, 2]}'
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Nested values as JSON and YAML can hold them; numbers that are not finite become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def from_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: if it is no JSON, or nests too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(first_line(error)) from error


def read_json(path: Path, *, remedy: str = "") -> Any:
    """The contents of a JSON file.

    Args:
        path: the file.
        remedy: what to do about a damaged one, for the message.

    Raises:
        UserError: if it cannot be read, or is damaged.
    """
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        advice = f": {remedy}" if remedy else ""
        raise UserError(
            f"{path} is damaged or cannot be read ({first_line(error)}){advice}"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file, by name, and what it says of itself.

    Raises:
        ValueError: if it cannot be read, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(first_line(error)) from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name.

    Raises:
        ValueError: if it cannot be read, is damaged, holds objects, or grows beyond measure.
    """
    import numpy as np

    try:
        check_archive(path, stored=False)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (
        *(OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error, MemoryError),
        *(NotImplementedError, RuntimeError),  # another packing; a password
        *(SyntaxError, TokenError),  # NumPy reads the head of an array as Python's literals
        *(TypeError, AttributeError),  # one array, which is no archive
    ) as error:
        raise ValueError(first_line(error)) from error


def check_archive(path: Path, *, stored: bool) -> None:
    """See that a zip archive does not grow when it is read; what is no archive is left alone.

    Args:
        path: the file.
        stored: whether its entries must not be compressed, as those of torch.save never are.

    Raises:
        ValueError: if it does.

    Example:
        >>> import io, tempfile
        >>> file = Path(tempfile.mkdtemp()) / "bomb.zip"
        >>> with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        ...     archive.writestr("zeros", bytes(10**6))
        >>> check_archive(file, stored=True)
        Traceback (most recent call last):
        ValueError: it is compressed, which torch.save never does
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size, held = path.stat().st_size, sum(entry.file_size for entry in entries)
    if stored and any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch.save never does")
    if held > (size if stored else max(FREE_BYTES, GROWTH * size)):
        raise ValueError(f"its entries are larger than the file: {held} bytes in {size}")


def check_gzip(path: Path) -> None:
    """See that a file compressed by gzip does not grow beyond measure; others are left alone.

    Args:
        path: the file.

    Raises:
        ValueError: if it does.
        OSError: if it is damaged.
        EOFError: if it is cut off.
    """
    if path.suffix.lower() != ".gz":
        return
    most, held = max(FREE_BYTES, GROWTH * path.stat().st_size), 0
    with gzip.open(path) as file:
        while held <= most and (piece := file.read(2**20)):
            held += len(piece)
    if held > most:
        raise ValueError(f"it holds more than {most} bytes in {path.stat().st_size}")


def with_no_weights(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's state, by name; no memory is taken for it.

    Args:
        make: builds the network.

    Example:
        >>> from torch import nn
        >>> with_no_weights(lambda: nn.Linear(10**6, 10**6, bias=False))
        {'weight': (1000000, 1000000)}
    """
    import torch

    with torch.device("meta"):
        network = make()
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def check_shapes(make: Callable[[], nn.Module], held: dict[str, torch.Tensor]) -> None:
    """See that a network's state is what a file holds, before the network is made.

    Args:
        make: builds the network.
        held: tensors of the file, by name.

    Raises:
        ValueError: if a tensor lacks, is too many, or has another shape.
    """
    wanted = with_no_weights(make)
    for name in [*wanted, *held]:
        if name not in held:
            raise ValueError(f"it lacks {name}")
        if name not in wanted:
            raise ValueError(f"it has {name}, which the network lacks")
        if wanted[name] != tuple(held[name].shape):
            raise ValueError(f"{name} must be {wanted[name]}, got {tuple(held[name].shape)}")
