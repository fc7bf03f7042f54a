"""`rectified prune`: iterative pruning with and without AP, over scores, arms and seeds."""

from dataclasses import replace
from pathlib import Path

from rectified.jobs.job import Job, Report
from rectified.jobs.prune import report, saved, settings, study

JOB = Job(
    verb="prune",
    default=settings.PruneConfig(),
    resolve=settings.resolve,
    check=study.check,
    study=study.study,
    report=Report("Pruning report", report.subtitle, report.sections),
    network=saved.network,
)
DEMO = replace(
    JOB,
    default=settings.PruneConfig(ap=("off", "lite", "pro", "off_pro"), cycles=12, seeds=12),
    out=Path("runs/demo"),
)
