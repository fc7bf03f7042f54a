"""`rectified protein`: train, reflow, sample and measure; and samples from a finished run."""

from rectified.jobs.job import Job, Report, Sampler
from rectified.jobs.protein import report, samples, settings, study

JOB = Job(
    verb="protein",
    default=settings.ProteinConfig(),
    resolve=settings.resolve,
    check=study.check,
    study=study.run,
    report=Report("Protein report", report.subtitle, report.sections),
    network=study.network,
    sampler=Sampler(samples.write_samples, steps=10, takes=("length",)),
)
