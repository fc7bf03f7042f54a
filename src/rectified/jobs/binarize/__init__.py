"""`rectified binarize`: 1-bit networks, estimator beside estimator over seeds; then on bits."""

from rectified.jobs.binarize import report, settings, study
from rectified.jobs.job import Job, Report

JOB = Job(
    verb="binarize",
    default=settings.BinarizeConfig(),
    resolve=settings.resolve,
    check=study.check,
    study=study.run,
    report=Report("Binarization report", report.subtitle, report.sections),
    network=study.network,
)
