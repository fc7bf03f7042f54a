"""`rectified sample RUN`: samples from a finished run of a verb that has some."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rectified.errors import UserError
from rectified.jobs import JOBS, job_of
from rectified.jobs.job import Results, Sampler, Tool, open_run
from rectified.jobs.options import check_minima, check_seed

_NOT_EVERYWHERE = ("length", "label", "guidance", "distilled")


@dataclass(frozen=True)
class SampleOptions:
    """Options of `rectified sample`.

    Attributes:
        count: how many samples.
        steps: of the solver; 1 for a straightened flow's one step.
        length: of a protein, in residues; as the run was measured by default.
        label: class to generate, for a conditional flow.
        guidance: weight of guidance, for a conditional flow.
        distilled: use the distilled one-step network of the run.
        out: folder for the samples; RUN/samples by default.
        seed: of the noise.
        device: auto, cpu or cuda.
        quiet: print nothing but the result.
    """

    count: int = 64
    steps: int | None = None
    length: int | None = None
    label: int | None = None
    guidance: float = 1.0
    distilled: bool = False
    out: Path | None = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    quiet: bool = False


def sample(folder: Path, options: SampleOptions) -> str:
    """Generate samples from the run in `folder`; returns a line that says where they are.

    Raises:
        UserError: if it is no finished run that can be sampled, or an option does not fit it.
    """
    results = open_run(folder)
    sampler = _sampler(results)
    check_minima(options, {"count": 1, "steps": 1, "length": 1})
    if not math.isfinite(options.guidance):
        raise UserError(f"guidance must be a number, got {options.guidance}")
    check_seed(options.seed)
    for name in _NOT_EVERYWHERE:
        is_given = getattr(options, name) != getattr(SampleOptions, name)
        if is_given and name not in sampler.takes:
            raise UserError(f"a run of {results.verb} takes no {name}: leave it out")
    steps, out = options.steps or sampler.steps, options.out or folder / "samples"
    return sampler.make(results, replace(options, steps=steps, out=out))


def _sampler(results: Results) -> Sampler:
    sampler = results.job.sampler if results.verb in JOBS else None
    if sampler is None:
        able = [verb for verb in JOBS if job_of(verb).sampler is not None]
        raise UserError(
            f"{results.folder} is a run of {results.verb}, which has no samples: give one of "
            f"{', '.join(able)}"
        )
    return sampler


def _run(folders: Sequence[Path], options: SampleOptions) -> str:
    return sample(folders[0], options)


TOOL = Tool("RUN", SampleOptions(), _run)
