"""The optional libraries: imported where they are used, and missed in one line."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rectified.errors import UserError, first_line


def needed(name: str) -> Any:
    """The package `diffusers`, `transformers` or `peft`.

    Raises:
        UserError: if it cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"{name} is needed for pipelines of diffusers and cannot be imported "
            f'({first_line(error)}): pip install "rectified[diffusers]"'
        ) from error
