"""`rectified.run`: a verb from Python, done as the command line does it."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from rectified.errors import UserError, choose
from rectified.jobs import JOBS, TOOLS, job_of, sweepable, tool_of
from rectified.jobs.job import Job, Results, Row, Sweeper, perform
from rectified.jobs.values import override
from rectified.runs import Run, default_path, environment
from rectified.training import accelerator


@dataclass(frozen=True)
class Work:
    """The work to do, once its settings are known.

    Attributes:
        name: for the folder.
        config: the settings.
        perform: does it: settings, folder, environment, progress.
        out: a folder of its own, in which a run replaces the one before.
    """

    name: str
    config: Any
    perform: Callable[[Any, Run, Row, bool], Results]
    out: Path | None = None

    @classmethod
    def of_job(cls, verb: str, job: Job[Any, Any], config: Any) -> Work:
        """One run of a job."""
        return cls(verb, config, partial(perform, job), job.out)

    @classmethod
    def of_sweep(cls, verb: str, sweeper: Sweeper, swept: str, settings: Any, options: Any) -> Work:
        """Many runs of the job behind the verb `swept`."""
        whole = sweeper.whole(swept, settings, options)
        return cls(f"{verb}-{swept}", whole, sweeper.perform)

    def folder(self, out: Path | None, resume: Path | None, *, writer: bool) -> Run:
        """The folder of the work; nothing is made yet.

        Raises:
            UserError: if the folder cannot be used.
        """
        return Run(
            resume or out or self.out or default_path(self.name, self.config.data),
            resume=resume is not None,
            replace=out is None and resume is None and self.out is not None,
            writer=writer,
        )


def run(verb: str, *, out: str | Path | None = None, **settings: Any) -> Results:
    """Do what `rectified VERB` does, and return what was found.

    Args:
        verb: of a job, such as `prune`; or `sweep`, with `of="prune"` and `grid="seed=0..9"`.
        out: folder for the results; the command's own by default.
        settings: what flags say there: numbers, texts and paths; lists as tuples or as `"a,b"`.

    Raises:
        UserError: for a setting that the verb does not have, or one that is impossible.
    """
    work = _sweep(verb, settings) if verb in TOOLS else _job(verb, settings)
    with calm_libraries():
        process = accelerator(work.config.device)
        place = None if out is None else Path(out)
        folder = work.folder(place, None, writer=process.is_main_process)
        progress = process.is_main_process and sys.stderr.isatty()
        with contextlib.closing(folder):
            return work.perform(work.config, folder, environment(), progress)


def _job(verb: str, settings: Mapping[str, Any]) -> Work:
    choose("verb", verb, [*JOBS, *TOOLS])
    job = job_of(verb).of(settings)
    return Work.of_job(verb, job, override(job.default, settings, verb=verb))


def _sweep(verb: str, settings: Mapping[str, Any]) -> Work:
    sweeper = tool_of(verb)
    if not isinstance(sweeper, Sweeper):
        raise UserError(f"{verb} makes no run; choose from {', '.join([*JOBS, 'sweep'])}")
    shared = dict(settings)
    job = sweepable(str(shared.pop("of", None))).of(shared)
    names = [field.name for field in fields(sweeper.default)]
    own = {name: shared.pop(name) for name in names if name in shared}
    return Work.of_sweep(
        verb,
        sweeper,
        job.verb,
        override(job.default, shared, verb=job.verb),
        override(sweeper.default, own, verb=verb),
    )


@contextlib.contextmanager
def calm_libraries() -> Iterator[None]:
    """Libraries warn about what is not the user's to change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.|accelerate\.")
        yield
