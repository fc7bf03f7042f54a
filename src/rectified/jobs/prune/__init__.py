"""`rectified prune`: iterative pruning with and without AP, over scores, arms and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rectified.jobs.options import seed_list
from rectified.jobs.prune_settings import SCORES, PruneConfig, resolve
from rectified.jobs.prune_study import Study
from rectified.runs import Run

__all__ = ["DEFAULT", "DEMO", "SCORES", "PruneConfig", "resolve", "run"]

DEFAULT = PruneConfig()
DEMO = PruneConfig(ap=("off", "lite", "pro", "off_pro"), cycles=12, seeds=12)


def run(config: PruneConfig, folder: Run, facts: Mapping[str, Any], progress: bool) -> str:
    """Do the study and write its folder.

    Args:
        config: the settings; what is left open is resolved.
        folder: where the results go; nothing is written before the settings prove possible.
        facts: the environment, for the record.
        progress: whether to show progress bars.

    Returns:
        A short text with what was found.
    """
    config = resolve(config)
    study = Study(config, folder, progress)
    study.check()
    folder.begin("prune", asdict(config), facts)
    seeds = seed_list(config.seeds, config.seed)
    for group in study.groups(seeds):
        study.run_group(group)
    return study.finish(facts)
