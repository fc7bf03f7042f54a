"""Safetensors files that say of themselves what they are: `format` and `version` in the header."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from rectified.errors import UserError, first_line

Metadata = dict[str, str]


def read(path: str | Path) -> tuple[dict[str, Tensor], Metadata]:
    """Read the tensors and the header's metadata of a file.

    Raises:
        UserError: if it is missing, truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = first_line(error)
        raise UserError(f"{path} cannot be read as a safetensors file: {reason}") from error


def format_of(path: str | Path) -> str:
    """The format that a file names; empty if it names none. Raises as `read`."""
    return read(path)[1].get("format", "")


def check_header(path: str | Path, metadata: Metadata, about: Metadata, writer: str) -> None:
    """See that a file is of a format and a version.

    Args:
        path: the file, for the message.
        metadata: its header's.
        about: `format` and `version` that it must have.
        writer: what writes such files, for the message.

    Raises:
        UserError: if it is of another one.
    """
    if metadata.get("format") != about["format"]:
        raise UserError(f"{path} must be written by {writer}, got another safetensors file")
    if metadata.get("version") != about["version"]:
        raise UserError(
            f"{path} must have format version {about['version']}, got {metadata.get('version')!r}"
        )


@contextmanager
def damage_named(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the file: it is said in one line.

    Raises:
        UserError: in place of any other error of values.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as e:
        raise UserError(f"{path} is damaged: {type(e).__name__}: {first_line(e)}") from e
