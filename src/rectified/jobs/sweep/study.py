"""The work of a sweep: see that every point is possible, do what is not done, merge the rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rectified.errors import UserError
from rectified.jobs.job import PAGE, Findings, Results, Row, contents_of, finish
from rectified.jobs.sweep import rows
from rectified.jobs.sweep.engines import carry_out, engine
from rectified.jobs.sweep.settings import Sweep, SweepPlan, resolve
from rectified.jobs.sweep.tasks import Outcome, Task, identity
from rectified.runs import (
    CONFIG,
    RESULTS,
    Run,
    drop_checkpoint,
    read_config,
    read_results,
    to_json,
    write_config,
)

_SEEDS = ("seed", "seeds")  # settings that decide nothing about what is possible


def perform(sweep: Sweep, folder: Run, facts: Row, progress: bool) -> Results:
    """Do all runs that are not done, and merge what they found.

    Args:
        sweep: what to run; every point is tried before anything is written.
        folder: where the runs and the results go.
        facts: the environment, for the record.
        progress: whether to show progress bars.

    Raises:
        UserError: if a setting is impossible, nothing is left to do, or runs failed for a mistake
            in their settings.
        RuntimeError: if runs failed for another reason.
    """
    if folder.resume and folder.finished:
        _see_what_is_left(sweep, folder.path)
    plan = check(resolve(sweep), progress)
    tasks = _tasks(plan, folder.path)
    folder.begin("sweep", asdict(sweep), facts)
    if folder.resume:
        write_config(folder.path / CONFIG, "sweep", asdict(sweep))  # the grid may have grown
        (folder.path / RESULTS).unlink(missing_ok=True)
    outcomes = _carry_out(sweep, tasks, folder, progress)
    found = _findings(tasks, outcomes)
    results = finish(folder, contents_of("sweep", asdict(sweep), facts, found))
    _complain(found.more["failed"], outcomes, folder.path, len(tasks))
    return results


def _see_what_is_left(sweep: Sweep, path: Path) -> None:
    """See that runs failed, or that the grid is another.

    Raises:
        UserError: if neither.
    """
    _, before = read_config(path / CONFIG)
    if before.get("grid") == sweep.grid and not read_results(path).get("failed"):
        raise UserError(f"{path} is finished: see {path / PAGE}, or go on with a larger --grid")


def check(plan: SweepPlan, progress: bool) -> SweepPlan:
    """Read data and network, and try them, once for all points that differ in their seeds alone.

    Raises:
        UserError: if a point is impossible.
    """
    from tqdm import tqdm

    job = plan.config.job
    kinds = {to_json(_but_for_seeds(point.settings)): point.settings for point in plan.points}
    bar = tqdm(
        kinds.values(),
        desc=f"sweep {plan.config.of}: trying every setting",
        disable=None if progress else True,  # None: hidden unless a person is watching
        leave=False,
    )
    for settings in bar:
        is_elsewhere = plan.config.cluster is not None  # where there may be other devices
        job.check(job.resolve(replace(settings, device="auto") if is_elsewhere else settings))
    return plan


def _but_for_seeds(settings: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name not in _SEEDS}


def _tasks(plan: SweepPlan, folder: Path) -> list[Task]:
    """The runs, each once."""
    sweep = plan.config
    tasks: dict[str, Task] = {}
    for point in plan.points:
        name = identity(sweep.of, point.settings)
        tasks[name] = Task(
            verb=sweep.of,
            point=point.grid,
            settings=point.settings,
            path=(folder / "runs" / name).resolve(),
            home=Path.cwd(),
            threads=sweep.threads,
            tries=sweep.tries,
            sweeper=os.getpid(),
        )
    return list(tasks.values())


def _carry_out(
    sweep: Sweep, tasks: Sequence[Task], folder: Run, progress: bool
) -> dict[str, Outcome]:
    """Do what is not done; one bar for all."""
    from joblib import cpu_count

    for task in tasks:
        task.forget_attempts()
    left = [task for task in tasks if not task.finished]
    if not left:
        return {}
    with (
        _Progress(sweep, tasks, folder, progress) as bar,
        engine(sweep.cluster, sweep.workers or cpu_count(), sweep.threads) as made,
    ):
        outcomes = carry_out(left, made, bar.hear)
    for task in tasks:
        task.forget_attempts()
    return {outcome.identity: outcome for outcome in outcomes}


class _Progress:
    """A bar over all runs, and a line of the log for every outcome."""

    def __init__(self, sweep: Sweep, tasks: Sequence[Task], folder: Run, progress: bool) -> None:
        from tqdm import tqdm

        self.folder = folder
        self.points = {task.identity: task.words for task in tasks}
        self.counts = {"again": 0, "failed": 0}
        self.bar = tqdm(
            desc=f"sweep {sweep.of}",
            total=len(tasks),
            initial=sum(task.finished for task in tasks),
            disable=None if progress else True,  # None: hidden unless a person is watching
            unit="run",
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def hear(self, outcome: Outcome) -> None:
        """Tell of an outcome."""
        if outcome.state in self.counts:
            self.counts[outcome.state] += 1
            self.bar.set_postfix({name: count for name, count in self.counts.items() if count})
        self.bar.update(outcome.state != "again")
        self.folder.log(
            {
                "event": "run",
                "run": outcome.identity,
                "point": self.points[outcome.identity],
                "state": outcome.state,
                "seconds": round(outcome.seconds, 3),
                **({"message": outcome.message} if outcome.message else {}),
            }
        )


def _findings(tasks: Sequence[Task], outcomes: Mapping[str, Outcome]) -> Findings:
    """The rows of all runs that are finished, and which are not."""
    done = [task for task in tasks if task.finished]
    for task in done:
        drop_checkpoint(task.path)
    merged = rows.merged(
        [(task.identity, task.point, read_results(task.path)["rows"]) for task in done]
    )
    failed = [
        {"run": task.identity, "point": task.words, "message": outcomes[task.identity].message}
        for task in tasks
        if not task.finished
    ]
    grid = tuple(dict.fromkeys(name for task in tasks for name in task.point))
    return Findings(
        merged,
        rows.summarise(merged, grid),
        more={"runs": [{"run": task.identity, **task.point} for task in done], "failed": failed},
    )


def _complain(
    failed: Sequence[Mapping[str, str]], outcomes: Mapping[str, Outcome], path: Path, count: int
) -> None:
    """Raise for the runs that failed, if any, once the others are merged."""
    if not failed:
        return
    first = failed[0]
    message = (
        f"{len(failed)} of {count} runs failed, the first of them {first['point']}: "
        f"{first['message']}; what the others found is in {path / PAGE}, and "
        f"rectified sweep --resume {path} tries again"
    )
    faults = [outcomes[one["run"]].fault for one in failed if outcomes[one["run"]].fault]
    if faults:
        raise RuntimeError(f"{message}\n\n{faults[0]}")
    raise UserError(message)
