"""`rectified protein`: train, reflow, sample and measure; and samples from a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rectified.jobs.protein_settings import PRESETS, ProteinConfig, resolve
from rectified.jobs.protein_study import Study

from rectified.errors import UserError
from rectified.protein.checkpoints import load_checkpoint
from rectified.protein.sampling import sample
from rectified.protein.structure_files import pdb_text
from rectified.runs import Run, read_results, write_text
from rectified.training import choose_device

__all__ = ["DEFAULT", "PRESETS", "ProteinConfig", "resolve", "run", "sample_run"]

DEFAULT = ProteinConfig()
_TOGETHER = 64_000  # residue pairs that are sampled at once


def run(config: ProteinConfig, folder: Run, facts: Mapping[str, Any], progress: bool) -> str:
    """Do the study and write its folder.

    Args:
        config: the settings; what is left open is resolved.
        folder: where the results go; nothing is written before the settings prove possible.
        facts: the environment, for the record.
        progress: whether to show progress bars.

    Returns:
        A short text with what was found.
    """
    config = resolve(config)
    study = Study(config, folder, progress)
    study.check()
    folder.begin("protein", asdict(config), facts)
    for seed in study.seeds:
        study.run_seed(seed)
    return study.finish(facts)


def sample_run(
    run: Path, *, count: int, steps: int, length: int | None, seed: int, out: Path, device: str
) -> str:
    """Samples of a finished protein run, as PDB files.

    Args:
        run: its folder.
        count: backbones.
        steps: evaluations of the network for each.
        length: residues of each; by default the first length that the run measured.
        seed: of the noise.
        out: folder for the files; made if it is not there.
        device: auto, cpu or cuda.

    Returns:
        A line that says what was written.

    Raises:
        UserError: if the run is no finished protein run, or a number is impossible.
    """
    config = read_results(run)["config"]
    length = config["lengths"][0] if length is None else length
    least = {"count": (count, 1), "length": (length, 10), "steps": (steps, 2)}
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise UserError(f"{name} must be at least {smallest}, got {value}")
    model = load_checkpoint(run / "model.safetensors").to(choose_device(device))
    generator = torch.Generator().manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    together = max(1, _TOGETHER // length**2)
    rot_step = config.get("rot_step", "exact")
    for first in range(0, count, together):
        part = min(together, count - first)
        made = sample(model, part, length, steps=steps, rot_step=rot_step, generator=generator)
        for number, atoms in enumerate(made.frames.atoms().cpu(), start=first):
            write_text(out / f"sample-{number:04d}.pdb", pdb_text([atoms]))
    return f"{count} backbones of {length} residues, {steps} steps each: {out}"
