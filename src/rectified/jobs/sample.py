"""`rectified sample RUN`: samples from a finished run of flow, diffusion or protein."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from rectified.errors import UserError
from rectified.jobs.options import check_seed
from rectified.runs import read_results

MAKERS = {"flow": "flow", "diffusion": "diffusion", "protein": "protein"}  # verb -> module of jobs
_PROTEINS, _FLOWS = ("length",), ("label", "guidance", "distilled")  # options of one kind alone


@dataclass(frozen=True)
class SampleOptions:
    """What to generate.

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
    """Samples from the run in `folder`; returns a line that says where they are.

    Raises:
        UserError: if it is no finished run that can be sampled, or an option does not fit it.
    """
    verb = read_results(folder)["verb"]
    if verb not in MAKERS:
        raise UserError(
            f"{folder} is a run of {verb}, which has no samples: give one of {', '.join(MAKERS)}"
        )
    for name in ("count", "steps", "length"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if not math.isfinite(options.guidance):
        raise UserError(f"guidance must be a number, got {options.guidance}")
    check_seed(options.seed)
    for name in _FLOWS if verb == "protein" else _PROTEINS:
        if getattr(options, name) != getattr(SampleOptions, name):
            raise UserError(f"a run of {verb} takes no {name}: leave it out")
    module = import_module(f"rectified.jobs.{MAKERS[verb]}")
    given: dict[str, Any] = {
        "count": options.count,
        "seed": options.seed,
        "out": options.out or folder / "samples",
        "device": options.device,
    }
    if verb == "protein":
        given |= {"steps": options.steps or 10, "length": options.length}
        return str(module.sample_run(folder, **given))
    given |= {
        "steps": options.steps or 1,
        "label": options.label,
        "guidance": options.guidance,
        "distilled": options.distilled,
    }
    return str(module.sample_run(folder, **given))
