"""What a file says of its size, checked before it is believed.

A few kilobytes can say that they hold terabytes: a zip archive whose entries grow when they are
read, weights whose description asks for a network of 10^12 of them. Both are refused before
anything is made.

    check_archive(path, stored=True)          # entries no larger than the file could hold
    check_gzip(path)                          # the same of one compressed file
    with_no_weights(lambda: Network(**said))  # the network's shapes; nothing is allocated
"""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

FREE_BYTES = 2**28  # what an archive may hold in any case
GROWTH = 30  # times the file: coordinates and weights compress by less than two, zeros by 1000


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
        >>> with_no_weights(lambda: nn.Linear(10**6, 10**6, bias=False))
        {'weight': (1000000, 1000000)}
    """
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
