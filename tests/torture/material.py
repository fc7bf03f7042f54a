"""What torture works on besides embedded data: small sets and pipelines, made without a network."""

from __future__ import annotations

import atexit
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
    from tests.flow.pipelines import tiny

    torch.manual_seed(0)
    tiny.unconditional().save_pretrained(place() / "unconditional")
    return place() / "unconditional"


@contextmanager
def small_proteins() -> Iterator[None]:
    """Let the smallest preset be smaller, and measure few real windows: for kills, not for use."""
    from rectified.jobs.protein import measuring
    from rectified.protein import model
    from tests.protein.conftest import SMALL

    with patch.dict(model.SIZES, tiny=SMALL), patch.object(measuring, "_REAL", 8):
        yield


MATERIAL: dict[str, Callable[[], Any]] = {"{chains}": chains, "{pipeline}": pipeline}


def split(words: str) -> list[str]:
    """The arguments of a command, with the names of material in it."""
    for name, make in MATERIAL.items():
        if name in words:
            words = words.replace(name, str(make()))
    return shlex.split(words)


_SMALL = "--updates 4 --pairs 20 --pair-steps 2 --samples 12 --batch-size 8 --seed 0 --steps 1,2"
RUNS = {  # a run of every verb, as small as it can be
    "pruned": "prune --limit 200 --epochs 1 --cycles 1 --seed 0",
    "binary": "binarize --model mlp --limit 200 --epochs 2 --seeds 2 --estimator ste,float",
    "moons": f"flow --data moons --reflow-updates 4 {_SMALL}",
    "form": f"diffusion --data moons --phases 2 --rectify-updates 4 {_SMALL}",
    "pipeline": "diffusion --pipeline {pipeline} --pairs 4 --pair-steps 2 --rectify-updates 2 "
    "--batch-size 4 --samples 2 --steps 1,2",
    "protein": "protein --data {chains} --lengths 12 --steps 4,3 --samples 2 --crop 12 "
    "--shortest 12 --epochs 1 --batch-size 2 --pairs 4 --pair-steps 2 --reflow-epochs 1",
    "scattered": "scatter --networks ridgelet_modulus --grid 32 --steps 2 --limit 40 "
    "--orientations 2",
    "grid": 'sweep prune --grid "seed=0,1" --limit 200 --epochs 1 --cycles 1 --workers 1',
}


@cache
def finished() -> list[Path]:
    """Folders of `RUNS`, done here; the figures of their pages, which take long, are not drawn."""
    from rectified.cli import main
    from rectified.jobs.pipeline import measuring
    from rectified.report import plots
    from tests.drawings import without_drawing

    with ExitStack() as stack:
        stack.enter_context(patch.object(plots, "figure", without_drawing))
        stack.enter_context(patch.object(measuring, "GEOMETRY_STEPS", 4))
        stack.enter_context(small_proteins())
        stack.enter_context(redirect_stdout(StringIO()))
        for name, words in RUNS.items():
            code = main([*split(words), "--quiet", "--out", str(place() / name)])
            assert code == 0, f"{name} ended with {code}"
    return [place() / name for name in RUNS]
