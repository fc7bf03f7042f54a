"""`rectified diffusion --pipeline`: few steps for a pipeline of diffusers, in its own form.

The pipeline makes pairs of noise and samples, a copy of its UNet is trained on them (or, in phases,
on the pipeline itself), and a pipeline is written that plain diffusers code samples in few steps.
"""

from rectified.jobs import flow
from rectified.jobs.job import Job, Report, Sampler
from rectified.jobs.pipeline import report, settings, study

JOB = Job(
    verb="diffusion",
    default=settings.DEFAULT,
    resolve=settings.resolve,
    check=study.check,
    study=study.study,
    report=Report("Diffusion report", flow.report.subtitle, report.sections),
    sampler=Sampler(study.refuse, steps=1, takes=("label", "guidance", "distilled")),
)
