"""The registry of verbs: a row for each, and nothing else needs to know the list.

A *job* is a study in a run folder (`rectified.jobs.job.Job`); a *tool* works on what jobs leave
(`rectified.jobs.job.Tool`) or runs them many times (`rectified.jobs.job.Sweeper`). A row says where
the value is and what help shows of it, so that `rectified --help` imports no torch. Adding a verb:
a folder, and a row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rectified.errors import choose

if TYPE_CHECKING:
    from rectified.jobs.job import Job, Sweeper, Tool


@dataclass(frozen=True)
class Entry:
    """A row of the registry.

    Attributes:
        summary: what the verb does, in one line.
        examples: what may follow `rectified VERB`.
        place: `module:NAME` of its value, imported when it is asked for.
        is_preset: whether it is another job with other defaults, which need not be swept.
    """

    summary: str
    examples: tuple[str, ...]
    place: str
    is_preset: bool = False


JOBS = {
    "demo": Entry(
        "the main job on embedded data, with a report",
        ("",),
        "rectified.jobs.prune:DEMO",
        is_preset=True,
    ),
    "prune": Entry(
        "iterative pruning with and without AP (Activate-while-Pruning)",
        (
            "--data digits --model mlp --ap off,lite --seeds 16",
            "--data PATH/cifar10 --model resnet20 --score lamp,magnitude --target 0.02",
            "--data PATH --model mine:factory --weights mine.safetensors --rewind finetune",
        ),
        "rectified.jobs.prune:JOB",
    ),
    "binarize": Entry(
        "networks with 1-bit weights and activations, estimators compared; then on bits",
        (
            "--data digits --model cnn --estimator ste,ede,reste --seeds 8",
            "--data PATH/cifar10 --model resnet20 --limit 10000 --epochs 10",
            "--data digits --estimator reste --pack",
        ),
        "rectified.jobs.binarize:JOB",
    ),
    "scatter": Entry(
        "scattering features, their bounds and what was measured against them",
        (
            "--data digits",
            "--data PATH/cifar10 --limit 10000",
            "--networks none --limit 200 --seeds 5",
        ),
        "rectified.jobs.scatter:JOB",
    ),
    "flow": Entry(
        "learn a flow between two sets, straighten it, generate in few steps",
        (
            "--data moons --source gaussians8 --rounds 2 --steps 1,2,4,100",
            "--data digits --recipe 2rf++ --seeds 3",
            "--data PATH/cifar10 --recipe 2rf++ --model unet --seeds 1 --precision bf16",
            "--data PATH/horses --source PATH/zebras --image-size 32",
        ),
        "rectified.jobs.flow:JOB",
    ),
    "protein": Entry(
        "protein backbones by a rectified flow: train, reflow, sample, measure",
        (
            "--data backbones.npz --preset tiny",
            "--data FOLDER --preset small --lengths 60,100 --steps 100,20,10",
            "--checkpoint ckpts/qflow_scope --rounds 1 --lengths 100 --steps 50,10",
        ),
        "rectified.jobs.protein:JOB",
    ),
    "diffusion": Entry(
        "rectify a diffusion model on its own pairs: few steps, in its own form",
        (
            "--data digits --steps 1,2,4,50",
            "--data digits --path scaled_linear --predict noise",
            "--data digits --phases 4 --steps 1,2,4,50",
            "--pipeline FOLDER --prompts prompts.txt --phases 4",
            "--pipeline FOLDER --help",
        ),
        "rectified.jobs.diffusion:JOB",
    ),
}
TOOLS = {
    "sample": Entry(
        "samples from a finished run of flow, diffusion or protein",
        ("runs/RUN --count 64 --steps 1", "runs/RUN --label 3 --guidance 2 --out samples"),
        "rectified.jobs.sample:TOOL",
    ),
    "sweep": Entry(
        "many runs of one verb over a grid, on local cores or on a cluster",
        (
            'prune --grid "score=magnitude,lamp seed=0..9 ap=off,lite" --data digits',
            'scatter --grid "seed=0..4" --networks none --workers 2',
            'prune --grid "seed=0..63" --cluster tcp://scheduler:8786 --out /shared/sweep',
            "--resume runs/THE_SWEEP",
        ),
        "rectified.jobs.sweep:TOOL",
    ),
    "report": Entry(
        "one page over finished run folders",
        ("runs/demo runs/other --out page.html",),
        "rectified.jobs.report:TOOL",
    ),
}


def job_of(verb: str) -> Job:
    """The job of a verb.

    Raises:
        UserError: for a verb that is no job.
    """
    choose("verb", verb, list(JOBS))
    return load(JOBS[verb].place)


def tool_of(verb: str) -> Tool | Sweeper:
    """The tool of a verb.

    Raises:
        UserError: for a verb that is no tool.
    """
    choose("verb", verb, list(TOOLS))
    return load(TOOLS[verb].place)


def sweepable(verb: str) -> Job:
    """The job of a verb that can be swept.

    Raises:
        UserError: for a verb that cannot.
    """
    choose("verb to sweep", verb, [name for name, entry in JOBS.items() if not entry.is_preset])
    return job_of(verb)


def load(place: str) -> Any:
    """The value at `module:NAME`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
