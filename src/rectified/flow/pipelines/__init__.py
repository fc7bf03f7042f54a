"""Rectified diffusion of pipelines of diffusers: pairs, training, and a pipeline in few steps.

    pipeline = load_pipeline("runwayml/stable-diffusion-v1-5")      # a folder, or a name on the hub
    field, schedule = pipeline_field(pipeline, prompts)
    budget = Budget(16, print)
    shape = sample_shape(pipeline)
    make_pipeline_pairs(field, schedule, store, shape, budget, prompts=len(prompts))
    student = make_student(field, schedule)
    objective = InPieces(rectification(schedule, text_drop=0.1), budget)
    fit(student.network, objective, PipelineBatches(store, size=16, updates=100), FitConfig(...))
    save_pipeline(pipeline, trained_unet(student), schedule, folder)

What is written is an ordinary folder: `DiffusionPipeline.from_pretrained(folder)` loads it, and its
scheduler is set for 1, 2 and 4 steps. diffusers, transformers and peft are the optional extra
`diffusers`, imported where they are used.
"""

from rectified.flow.pipelines.folders import (
    decode,
    load_pipeline,
    pipeline_field,
    sample_shape,
    save_pipeline,
    takes_prompts,
)
from rectified.flow.pipelines.memory import Budget, InPieces
from rectified.flow.pipelines.network import DiffusersNetwork
from rectified.flow.pipelines.pairs import PipelineBatches, make_pipeline_pairs, solve
from rectified.flow.pipelines.prompts import Prompts, read_prompts
from rectified.flow.pipelines.schedules import Schedule, changed, few_step_scheduler, read_schedule
from rectified.flow.pipelines.students import make_student, rectification, trained_unet

__all__ = [
    "Budget",
    "DiffusersNetwork",
    "InPieces",
    "PipelineBatches",
    "Prompts",
    "Schedule",
    "changed",
    "decode",
    "few_step_scheduler",
    "load_pipeline",
    "make_pipeline_pairs",
    "make_student",
    "pipeline_field",
    "read_prompts",
    "read_schedule",
    "rectification",
    "sample_shape",
    "save_pipeline",
    "solve",
    "takes_prompts",
    "trained_unet",
]
