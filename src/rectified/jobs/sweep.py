"""`rectified sweep VERB`: many runs of one verb over a grid, on local cores or on a cluster.

    config.yaml     the verb, the grid, and the settings that all runs share
    runs/IDENTITY   one ordinary run folder a run
    results.json    the rows of all runs, and means over their seeds with intervals

A finished run is never repeated: neither after a kill, nor when the sweep goes on with a larger
grid (`rectified sweep --resume DIR --grid ...`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rectified.errors import UserError
from rectified.jobs import sweep_report
from rectified.jobs.sweep_engines import carry_out, check_cluster, engine
from rectified.jobs.sweep_grid import points
from rectified.jobs.sweep_runs import Outcome, Task, identity
from rectified.runs import CONFIG, RESULTS, Run, drop_checkpoint, read_results, write_config


@dataclass(frozen=True)
class SweepConfig:
    """Run a verb once for every point of a grid. The verb's own options may follow, for all runs.

    Attributes:
        grid: settings and their values, such as "score=magnitude,lamp seed=0..9 ap=off+lite".
        cluster: address of a Dask scheduler (tcp://HOST:8786) or of a Ray head (ray://HOST:10001);
            this machine's cores by default.
        workers: runs at a time on this machine; one a core by default.
        threads: that each run may use.
        tries: how often a run is begun whose worker is lost, in all.
    """

    grid: str = ""
    cluster: str | None = None
    workers: int | None = None
    threads: int = 1
    tries: int = 3


@dataclass(frozen=True)
class Sweep:
    """A whole sweep.

    Attributes:
        of: the verb.
        settings: what its runs share: the verb's config.
        how: the grid, and who does the runs.
    """

    of: str
    settings: Any
    how: SweepConfig = field(default_factory=SweepConfig)

    # what the command line asks of every job's settings
    @property
    def data(self) -> str:
        """For the name of the folder."""
        return getattr(self.settings, "data", "data")

    @property
    def device(self) -> str:
        """Of the sweep's own process, which computes nothing."""
        return "cpu"

    def to_dict(self) -> dict[str, Any]:
        """As config.yaml has it."""
        own = {"of": self.of, "data": self.data, **asdict(self.how)}
        return {**own, "settings": asdict(self.settings)}


def run(sweep: Sweep, folder: Run, facts: Mapping[str, Any], progress: bool) -> str:
    """Do all runs that are not done, and merge what they found.

    Args:
        sweep: what to run; every point is checked before anything is written.
        folder: where the runs and the results go.
        facts: the environment, for the record.
        progress: whether to show a progress bar.

    Returns:
        A short text with what was found.

    Raises:
        UserError: if a setting is impossible, or runs failed for a mistake in their settings.
        RuntimeError: if runs failed for another reason.
    """
    _check(sweep)
    tasks = _tasks(sweep, folder.path)
    folder.begin("sweep", sweep.to_dict(), facts)
    if folder.resume:
        write_config(folder.path / CONFIG, "sweep", sweep.to_dict())  # the grid may have grown
        (folder.path / RESULTS).unlink(missing_ok=True)
    for task in tasks:
        task.forget_attempts()
    outcomes = _carry_out(sweep, tasks, folder, progress)
    for task in tasks:
        task.forget_attempts()
    return _finish(sweep, tasks, outcomes, folder, facts)


def _check(sweep: Sweep) -> None:
    how = sweep.how
    if how.cluster is not None:
        check_cluster(how.cluster)
    for name in ("workers", "threads", "tries"):
        value = getattr(how, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if how.cluster is not None and how.workers is not None:
        raise UserError("workers is for this machine: a cluster brings its own, leave it out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep hands out its runs itself: start it without torchrun")


def _tasks(sweep: Sweep, folder: Path) -> list[Task]:
    """The runs, each once, with settings that the verb has found possible."""
    module = import_module(f"rectified.jobs.{sweep.of}")
    resolve = getattr(module, "resolve", lambda config: config)
    tasks: dict[str, Task] = {}
    for point in points(sweep.how.grid, type(sweep.settings)):
        settings = resolve(replace(sweep.settings, **point))
        name = identity(sweep.of, settings)
        tasks[name] = Task(
            verb=sweep.of,
            point=point,
            settings=settings,
            path=(folder / "runs" / name).resolve(),
            home=Path.cwd(),
            threads=sweep.how.threads,
            tries=sweep.how.tries,
            sweeper=os.getpid(),
        )
    return list(tasks.values())


def _carry_out(
    sweep: Sweep, tasks: Sequence[Task], folder: Run, progress: bool
) -> dict[str, Outcome]:
    """Do what is not done; one bar for all."""
    from joblib import cpu_count
    from tqdm import tqdm

    left = [task for task in tasks if not task.finished]
    words = {task.identity: task.words for task in tasks}
    counts = {"finished": len(tasks) - len(left), "again": 0, "failed": 0}
    if not left:
        return {}
    with tqdm(
        desc=f"sweep {sweep.of}",
        total=len(tasks),
        initial=counts["finished"],
        disable=None if progress else True,  # None: hidden unless a person is watching
        unit="run",
    ) as bar:

        def heard(outcome: Outcome) -> None:
            counts[outcome.state] += 1
            bar.set_postfix({k: v for k, v in counts.items() if v and k != "finished"})
            bar.update(outcome.state != "again")
            folder.log(
                {
                    "event": "run",
                    "run": outcome.identity,
                    "point": words[outcome.identity],
                    "state": outcome.state,
                    "seconds": round(outcome.seconds, 3),
                    **({"message": outcome.message} if outcome.message else {}),
                }
            )

        workers = sweep.how.workers or cpu_count()
        with engine(sweep.how.cluster, workers, sweep.how.threads) as made:
            outcomes = carry_out(left, made, heard)
    return {outcome.identity: outcome for outcome in outcomes}


def _finish(
    sweep: Sweep,
    tasks: Sequence[Task],
    outcomes: Mapping[str, Outcome],
    folder: Run,
    facts: Mapping[str, Any],
) -> str:
    """Merge, write tables and page; complain at the end about what failed."""
    done = [task for task in tasks if task.finished]
    for task in done:
        drop_checkpoint(task.path)
    failed = [
        {"run": task.identity, "point": task.words, "message": outcomes[task.identity].message}
        for task in tasks
        if not task.finished
    ]
    found = [(task.identity, task.point, read_results(task.path)["rows"]) for task in done]
    rows = sweep_report.merged(found)
    keys = tuple(dict.fromkeys(name for task in tasks for name in task.point))
    results: dict[str, Any] = {
        "verb": "sweep",
        "config": sweep.to_dict(),
        "environment": dict(facts),
        "rows": rows,
        "summary": sweep_report.summarise(rows, keys),
        "runs": [{"run": task.identity, **task.point} for task in done],
        "failed": failed,
    }
    folder.write_text("report.html", sweep_report.page(results))
    folder.write_results(**results)
    if failed:
        _complain(failed, outcomes, len(done), folder.path)
    return sweep_report.text(results)


def _complain(
    failed: Sequence[Mapping[str, str]], outcomes: Mapping[str, Outcome], done: int, path: Path
) -> None:
    first = failed[0]
    message = (
        f"{len(failed)} of {len(failed) + done} runs failed, the first of them {first['point']}: "
        f"{first['message']}; what the others found is in {path / 'report.html'}, and "
        f"rectified sweep --resume {path} tries again"
    )
    faults = [outcomes[one["run"]].fault for one in failed if outcomes[one["run"]].fault]
    if faults:
        raise RuntimeError(f"{message}\n\n{faults[0]}")
    raise UserError(message)


def may_go_on(path: Path, *, with_grid: bool) -> bool:
    """Whether a sweep's folder has something left: it is unfinished, runs failed, or it grows."""
    return with_grid or not (path / RESULTS).is_file() or bool(read_results(path).get("failed"))
