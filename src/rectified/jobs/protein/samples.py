"""`rectified sample RUN` for a run of protein: backbones as PDB files."""

from __future__ import annotations

from typing import Any

from rectified.errors import UserError
from rectified.jobs.job import Results
from rectified.protein.checkpoints import load_checkpoint
from rectified.protein.sampling import sample
from rectified.protein.structure_files import pdb_text
from rectified.runs import WEIGHTS, write_text
from rectified.seeds import generator
from rectified.training import choose_device

_TOGETHER = 64_000  # residue pairs that are sampled at once


def write_samples(results: Results, options: Any) -> str:
    """Sample the flow of a finished run.

    Args:
        results: of the run.
        options: of `rectified sample`; the length is by default the first that the run measured.

    Returns:
        A line that says what was written.

    Raises:
        UserError: if a number is impossible.
    """
    count, steps = options.count, options.steps
    length = results.settings["lengths"][0] if options.length is None else options.length
    for name, value, smallest in (("count", count, 1), ("length", length, 10), ("steps", steps, 2)):
        if value < smallest:
            raise UserError(f"{name} must be at least {smallest}, got {value}")
    model = load_checkpoint(results.folder / WEIGHTS).to(choose_device(options.device))
    noise = generator(options.seed, "samples")
    options.out.mkdir(parents=True, exist_ok=True)
    together = max(1, _TOGETHER // length**2)
    rot_step = results.settings.get("rot_step", "exact")
    for first in range(0, count, together):
        part = min(together, count - first)
        made = sample(model, part, length, steps=steps, rot_step=rot_step, generator=noise)
        for number, atoms in enumerate(made.frames.atoms().cpu(), start=first):
            write_text(options.out / f"sample-{number:04d}.pdb", pdb_text([atoms]))
    return f"{count} backbones of {length} residues, {steps} steps each: {options.out}"
