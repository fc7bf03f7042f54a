"""`rectified flow`: learn a flow between two sets, straighten it, generate in few steps."""

from rectified.jobs.flow import report
from rectified.jobs.flow.networks import WEIGHTS, load_field
from rectified.jobs.flow.samples import sample
from rectified.jobs.flow.settings import DEFAULT, resolve
from rectified.jobs.flow.study import check, study
from rectified.jobs.job import Job, Report, Sampler

JOB = Job(
    verb="flow",
    default=DEFAULT,
    resolve=resolve,
    check=check,
    study=study,
    report=Report("Flow report", report.subtitle, report.sections),
    network=lambda results: load_field(results.folder / WEIGHTS)[0].module,
    sampler=Sampler(sample, steps=1, takes=("label", "guidance", "distilled")),
)
