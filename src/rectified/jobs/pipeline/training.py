"""Pairs of the pipeline, and students that are trained on them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from rectified import flow
from rectified.flow import Field, PairStore, Phased, pipelines
from rectified.flow.pipelines import Budget, InPieces, PipelineBatches
from rectified.jobs.job import Context
from rectified.jobs.pipeline.settings import RECTIFIED, PipelinePlan
from rectified.seeds import seeded
from rectified.training import Objective, fit

SHARD = 64  # pairs per file: minutes of a large pipeline, which is what a kill can cost


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs that students are trained on.

    Attributes:
        store: of all pairs.
        skipped: how many of them are left out, since they are not finite.
    """

    store: PairStore
    skipped: int


def make_pairs(plan: PipelinePlan, context: Context, budget: Budget) -> Pairs:
    """The teacher's pairs, made where they are missing."""
    config, teacher = plan.config, plan.teacher
    store = _store(plan, context)
    if teacher.prompts:
        context.folder.write_text("pairs/prompts.txt", "\n".join(teacher.prompts) + "\n")
    is_half = config.precision == "bf16"
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=is_half):
        skipped = pipelines.make_pipeline_pairs(
            teacher.field,
            teacher.schedule,
            store,
            teacher.shape,
            budget,
            prompts=len(teacher.prompts),
            steps=config.pair_steps,
            guidance=config.pair_guidance,
            device=teacher.device,
            progress=context.words("pairs"),
        )
    if skipped:
        budget.say(f"{skipped} of {config.pairs} samples were not finite and are left out")
    return Pairs(store, skipped)


def _store(plan: PipelinePlan, context: Context) -> PairStore:
    config, words = plan.config, "\n".join(plan.teacher.prompts)
    identity: dict[str, str | int | float] = {
        "model": flow.fingerprint(plan.teacher.pipeline.unet),
        "prompts": hashlib.sha256(words.encode()).hexdigest()[:16],
        "steps": config.pair_steps,
        "guidance": config.pair_guidance,
        "precision": config.precision,
    }
    place = context.folder.path / "pairs"
    return PairStore(place, count=config.pairs, shard=SHARD, seed=1_000_000, identity=identity)


def train(
    plan: PipelinePlan, context: Context, budget: Budget, pairs: Pairs, seed: int
) -> tuple[Field, list[float]]:
    """One student, and its losses."""
    with seeded(seed, "student"):  # low-rank updates begin at random
        student = pipelines.make_student(
            plan.teacher.field,
            plan.teacher.student_schedule,
            lora_rank=plan.config.lora_rank,
            gradient_checkpointing=plan.config.gradient_checkpointing,
        )
    batches = PipelineBatches(
        pairs.store,
        size=plan.config.batch_size,
        updates=plan.updates,
        seed=seed,
        with_noise=plan.student == RECTIFIED,
    )
    losses = fit(
        student.network,
        InPieces(_objective(plan), budget),
        batches,
        replace(plan.fitting, seed=seed),
        store=context.folder.store(f"training-{seed}"),
        progress=context.words(f"seed {seed} training"),
    )
    student.network.eval()
    return student, losses


def _objective(plan: PipelinePlan) -> Objective:
    """On pairs; or, in phases, on the teacher."""
    config, schedule = plan.config, plan.teacher.student_schedule
    drop = config.text_drop if plan.teacher.prompts else 0.0
    if plan.student == RECTIFIED:
        return pipelines.rectification(schedule, loss=config.loss, text_drop=drop)
    return Phased(
        plan.teacher.field,
        config.phases,
        config.phase_steps,
        config.pair_guidance,
        path=schedule.path,
        predicts=schedule.predicts,
        # whole levels, where phases hold whole numbers of them
        times=flow.Discrete(max(schedule.levels // config.phases, 1)),
        label_drop=drop,
    )
