"""`rectified diffusion`: few steps for a diffusion model, ours on a data set or one of `diffusers`.

On a data set this is a study of flows on a diffusion's path; on a pipeline (`--pipeline`) it is
`rectified.jobs.pipeline`.
"""

from rectified.jobs.diffusion.settings import DEFAULT, resolve
from rectified.jobs.diffusion.study import check, study
from rectified.jobs.flow import JOB as FLOW
from rectified.jobs.flow import report
from rectified.jobs.job import Job, Report

JOB = Job(
    verb="diffusion",
    default=DEFAULT,
    resolve=resolve,
    check=check,
    study=study,
    report=Report("Diffusion report", report.subtitle, report.sections),
    network=FLOW.network,
    sampler=FLOW.sampler,
    variants={"pipeline": "rectified.jobs.pipeline:JOB"},
)
