"""The work of `rectified diffusion --pipeline`: pairs, and for every seed a student.

Whatever is measured is kept; an unfinished training is kept by `fit`, unfinished pairs by their
store. So a run that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from rectified import flow
from rectified.errors import UserError
from rectified.flow import pipelines
from rectified.flow.pipelines import Budget
from rectified.jobs.flow.comparisons import verdicts
from rectified.jobs.flow.report import named, summarise
from rectified.jobs.job import Context, Findings, Results
from rectified.jobs.pictures import save_grid
from rectified.jobs.pipeline.measuring import Arm, Comparison, measure
from rectified.jobs.pipeline.settings import TEACHER, PipelinePlan
from rectified.jobs.pipeline.training import Pairs, make_pairs, train

Arms = dict[tuple[int, str], Arm]
"""Measured arms by seed and recipe, in the order of the work."""


class Notes:
    """Lines for the user: shown at once, and again in the report.

    Args:
        context: where the study works.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.words: list[str] = []

    def __call__(self, words: str) -> None:
        """Take down one line."""
        self.words.append(words)
        self.context.folder.log({"event": "note", "words": words})
        if self.context.progress:
            print(f"rectified: {words}", file=sys.stderr)


def check(plan: PipelinePlan) -> PipelinePlan:
    """Load the pipeline and see that it can be rectified as the settings say.

    Raises:
        UserError: if it cannot.
    """
    teacher = plan.teacher
    schedule = teacher.student_schedule
    _ = teacher.shape
    if plan.config.lora_rank:  # whether the UNet takes it shows when it is there
        pipelines.make_student(teacher.field, schedule, lora_rank=plan.config.lora_rank)
    return plan


def study(plan: PipelinePlan, context: Context) -> Findings:
    """Do what is left to do; the first seed's student is in `pipeline/` of the folder."""
    notes = Notes(context)
    schedules = (plan.teacher.schedule, plan.teacher.student_schedule)
    for path, predicts in dict.fromkeys((one.path, one.predicts) for one in schedules):
        warning = flow.gain_warning(path, predicts)
        if warning:
            notes(warning)
    arms = _arms(plan, context, Budget(plan.config.batch_size, notes))
    picture = arms[plan.seeds[0], plan.student].shown
    if context.folder.writer and picture is not None:
        save_grid(context.folder.path / "samples.png", picture[0])
    return _findings(arms, list(dict.fromkeys(notes.words)))


def _arms(plan: PipelinePlan, context: Context, budget: Budget) -> Arms:
    """The teacher, and every student."""
    pairs = make_pairs(plan, context, budget)
    comparison = Comparison(plan, budget)
    arms: Arms = {}
    for seed in plan.seeds:
        names = (TEACHER, plan.student) if seed == plan.seeds[0] else (plan.student,)
        for recipe in names:
            kept = _kept(context, seed, recipe)
            arms[seed, recipe] = kept or _work(plan, context, comparison, pairs, seed, recipe)
    return arms


def _kept(context: Context, seed: int, recipe: str) -> Arm | None:
    """An arm that the run which is resumed has measured already."""
    saved = context.folder.store(f"{recipe}-{seed}").load() if context.folder.resume else None
    return None if saved is None else Arm(**saved)


def _work(
    plan: PipelinePlan,
    context: Context,
    comparison: Comparison,
    pairs: Pairs,
    seed: int,
    recipe: str,
) -> Arm:
    """Train and measure one arm; the first student is written as a pipeline."""
    teacher, more = plan.teacher, dict[str, Any]()
    field = teacher.field
    if recipe != TEACHER:
        field, more["losses"] = train(plan, context, comparison.budget, pairs, seed)
        unet = pipelines.trained_unet(field)
        if seed == plan.seeds[0] and context.folder.writer:
            place = context.folder.path / "pipeline"
            pipelines.save_pipeline(teacher.pipeline, unet, teacher.student_schedule, place)
    arm = measure(comparison, seed, recipe, field)
    arm.note.update(_protocol(plan, pairs), **more)
    context.folder.store(f"{recipe}-{seed}").save(vars(arm))
    for row in arm.rows:
        context.folder.log({"event": "measured", **row})
    return arm


def _protocol(plan: PipelinePlan, pairs: Pairs) -> dict[str, Any]:
    config = plan.config
    return {
        "skipped": pairs.skipped,
        "pairs_used": config.pairs - pairs.skipped,
        "protocol": f"{config.samples} held-out noises, against the pipeline in "
        f"{config.pair_steps} steps of DPM-Solver++ at guidance {config.pair_guidance:g}; "
        f"students at guidance {config.guidance:g}, all trained on the same pairs",
    }


def _findings(arms: Mapping[tuple[int, str], Arm], warnings: list[str]) -> Findings:
    rows = [row for arm in arms.values() for row in arm.rows]
    notes = {
        f"seed {seed}, {recipe}": {
            "seed": seed,
            "recipe": recipe,
            "round": arm.rows[0]["round"],
            **arm.note,
        }
        for (seed, recipe), arm in arms.items()
    }
    shown = {
        named(recipe, arm.rows[0]["round"]): torch.round(arm.shown.double() * 1000)
        .div(1000)
        .tolist()
        for (_, recipe), arm in arms.items()
        if arm.shown is not None
    }
    return Findings(
        rows,
        summarise(rows),
        verdicts(rows),
        {"notes": notes, "warnings": warnings},
        {"notes": notes, "shown": shown},
    )


def refuse(results: Results, _options: Any) -> str:
    """No samples of ours: diffusers gives them.

    Raises:
        UserError: which says how.
    """
    place = results.folder / "pipeline"
    raise UserError(
        f"{results.folder} rectified a pipeline: sample it with diffusers, "
        f"DiffusionPipeline.from_pretrained({str(place)!r})"
    )
