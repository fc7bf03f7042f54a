"""The lean network in a run's folder: its weights without zeros, and what builds it again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from torch import nn

from rectified.errors import UserError
from rectified.inference.compact import resize
from rectified.inference.sparse import load_sparse, save_sparse
from rectified.jobs.classifiers import Architecture
from rectified.runs import write_text

WEIGHTS, ABOUT = "lean.safetensors", "lean.json"


def save_lean(compact: nn.Module, architecture: Architecture, folder: Path) -> None:
    """Write a network without its empty channels, and how it was built at full size."""
    save_sparse(compact, folder / WEIGHTS)
    write_text(folder / ABOUT, json.dumps(asdict(architecture), indent=1))


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
    return resize(_at_full_size(folder) if network is None else network, state).eval()


def _at_full_size(folder: Path) -> nn.Module:
    try:
        architecture = Architecture.read(json.loads((folder / ABOUT).read_text()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / ABOUT} cannot be read ({error}): pass the network") from error
    if not architecture.is_ours:
        raise UserError(f"model {architecture.model!r} is not ours: pass the network to load_lean")
    return architecture.build()
