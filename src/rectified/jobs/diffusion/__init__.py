"""`rectified diffusion`: few steps for a diffusion model, ours on a data set or one of `diffusers`.

On a data set this is a study of flows on a diffusion's path; on a pipeline (`--pipeline`) it is
`rectified.jobs.pipeline`.
"""

from rectified.jobs import flow
from rectified.jobs.diffusion import settings, study
from rectified.jobs.job import Job, Report

JOB = Job(
    verb="diffusion",
    default=settings.DEFAULT,
    resolve=settings.resolve,
    check=study.check,
    study=study.study,
    report=Report("Diffusion report", flow.report.subtitle, flow.report.sections),
    network=flow.JOB.network,
    sampler=flow.JOB.sampler,
    variants={"pipeline": "rectified.jobs.pipeline:JOB"},
)
