"""What torture works on besides embedded data: small sets and pipelines, made without a network."""

from __future__ import annotations

import atexit
import shlex
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch


@cache
def place() -> Path:
    """A folder that goes with this process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def lacking(*modules: str) -> list[str]:
    """Which of these packages are not here."""
    return [name for name in modules if find_spec(name) is None]


@cache
def chains() -> Path:
    """A set of four chains to train on and one that is held out: helices and strands."""
    from rectified.protein.chain_sets import save_set
    from rectified.protein.structure_files import ChainSet
    from tests.protein.conftest import chain, helix, strand

    made = [chain((helix, strand)[n % 2](20 + n), f"c{n}_A", n) for n in range(4)]
    save_set(place() / "chains.npz", ChainSet(made, [chain(helix(15), "held_A", 8)]))
    return place() / "chains.npz"


@cache
def pipeline() -> Path:
    """A pipeline of diffusers with random weights."""
    from tests.flow.diffusers import tiny

    torch.manual_seed(0)
    tiny.unconditional().save_pretrained(place() / "pipeline")
    return place() / "pipeline"


def small_proteins(
    set_attribute: Callable[..., None] = setattr, set_item: Callable[..., None] = dict.__setitem__
) -> None:
    """Let the smallest preset be smaller, and measure few real windows: for kills, not for use."""
    from rectified.jobs import protein_study
    from rectified.protein import model
    from tests.protein.conftest import SMALL

    set_item(model.SIZES, "tiny", SMALL)
    set_attribute(protein_study, "_REAL", 8)


MATERIAL: dict[str, Callable[[], Any]] = {"{chains}": chains, "{pipeline}": pipeline}


def split(words: str) -> list[str]:
    """The arguments of a command, with the names of material in it."""
    for name, make in MATERIAL.items():
        if name in words:
            words = words.replace(name, str(make()))
    return shlex.split(words)
