"""`rectified flow`: learn a flow between two sets, straighten it, generate in few steps."""

from rectified.jobs.flow import networks, report, samples, settings, study
from rectified.jobs.job import Job, Report, Sampler

JOB = Job(
    verb="flow",
    default=settings.DEFAULT,
    resolve=settings.resolve,
    check=study.check,
    study=study.study,
    report=Report("Flow report", report.subtitle, report.sections),
    network=networks.network_of,
    sampler=Sampler(samples.sample, steps=1, takes=("label", "guidance", "distilled")),
)
