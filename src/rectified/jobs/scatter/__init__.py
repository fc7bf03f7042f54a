"""`rectified scatter`: features, what is proved of them, what was measured, and a classifier."""

from rectified.jobs.job import Job, Report
from rectified.jobs.scatter import report, settings, study

JOB = Job(
    verb="scatter",
    default=settings.ScatterConfig(),
    resolve=settings.resolve,
    check=study.check,
    study=study.run,
    report=Report("Scattering report", report.subtitle, report.sections),
)
