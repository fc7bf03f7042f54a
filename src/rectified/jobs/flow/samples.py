"""Samples of a study's network: beside its results, and by `rectified sample`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rectified import flow
from rectified.errors import UserError
from rectified.files import atomic
from rectified.flow import Field
from rectified.jobs.flow.data import FlowData
from rectified.jobs.flow.networks import DISTILLED, WEIGHTS, load_field
from rectified.jobs.flow.plan import FlowPlan
from rectified.jobs.flow.trial import Trial
from rectified.jobs.job import Results
from rectified.jobs.options import seed_list
from rectified.jobs.pictures import save_grid, save_points
from rectified.training import choose_device

_PICTURED = 256  # images in samples.png
_SEED = 950_000_000  # of the samples beside the results


def write_samples(plan: FlowPlan, trial: Trial, field: Field) -> None:
    """samples.png: what the run's network makes of noise in the fewest steps that were asked."""
    folder, transfer = trial.context.folder, trial.transfer
    if not folder.writer:
        return
    count = 64 if transfer.target.is_image else 1000
    x0 = transfer.draw(_SEED, count, held_out=True).to(trial.place)
    samples, _ = flow.generate(
        field,
        x0,
        steps=min(plan.steps),
        step=plan.step,
        labels=trial.labels(count, seed=0),
        guidance=plan.config.guidance,
    )
    save(folder.path / "samples.png", transfer.unscaled(samples.cpu()))


def save(path: Path, samples: Tensor) -> None:
    """A picture of images or points."""
    picture = save_grid if samples.ndim == 4 else save_points
    picture(path, samples)


def sample(results: Results, options: Any) -> str:
    """Samples from a finished run, as a picture (of at most 256 images) and as numbers (all).

    Args:
        results: of the run.
        options: of `rectified sample`: count, steps, seed, label (all classes in turn by default),
            guidance, distilled (the one-step network), device, out.

    Raises:
        UserError: if the run cannot give such samples.
    """
    field, about = load_field(results.folder / (DISTILLED if options.distilled else WEIGHTS))
    if options.distilled and options.steps != 1:
        raise UserError(
            f"a distilled network makes its samples in one step, got steps {options.steps}"
        )
    samples, evaluations = _generated(field, about, results.settings, options)
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "samples.png"
    save(picture, samples[:_PICTURED] if samples.ndim == 4 else samples)
    with atomic(options.out / "samples.npy") as temporary, temporary.open("wb") as file:
        np.save(file, samples.numpy(), allow_pickle=False)
    return f"{options.count} samples, {evaluations} evaluations each: {picture}"


def _generated(
    field: Field, about: Mapping[str, str], settings: Mapping[str, Any], options: Any
) -> tuple[Tensor, int]:
    """Samples in the data's own unit, and evaluations for each."""
    place = choose_device(options.device)
    field.network.to(place)
    labels = _labels(options.count, int(about["classes"]), options.label, options.guidance)
    x0 = _source_points(settings, about, options.count, options.seed).to(place)
    samples, evaluations = flow.generate(
        field,
        x0,
        steps=options.steps,
        step=flow.euler if field.path.is_straight else flow.natural_euler,
        labels=None if labels is None else labels.to(place),
        guidance=options.guidance,
        progress="samples",
    )
    mean, deviation = (_numbers(about[name]) for name in ("mean", "deviation"))
    return samples.cpu() * deviation + mean, evaluations


def _labels(count: int, classes: int, label: int | None, guidance: float) -> Tensor | None:
    if not classes:
        if label is not None or guidance != 1:
            raise UserError("this flow has no classes: leave out --label and --guidance")
        return None
    if label is not None and not 0 <= label < classes:
        raise UserError(f"label must be in 0..{classes - 1}, got {label}")
    return torch.arange(count) % classes if label is None else torch.full((count,), label)


def _source_points(
    settings: Mapping[str, Any], about: Mapping[str, str], count: int, seed: int
) -> Tensor:
    shape = tuple(int(side) for side in about["shape"].split(","))
    if about["source"] == "gaussian":
        return flow.noise_like((count, *shape), seed)
    names = ("data", "source", "limit", "image_size")
    data = FlowData(*(settings[name] for name in names))
    first = seed_list(settings["seeds"], settings["seed"])[0]  # whose held-out points they are
    transfer = data.transfer(seed=first, many=settings["samples"])
    return transfer.draw(seed, count, held_out=True)


def _numbers(text: str) -> Tensor:
    return torch.tensor([float(word) for word in text.split(",")])
