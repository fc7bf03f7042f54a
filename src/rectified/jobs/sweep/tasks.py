"""One run of a sweep: who it is, and how a worker does it.

The identity of a run is a hash of its verb, its resolved settings, and the contents of the files
that they name, so that the same run is never done twice, whichever grid asks for it, and changed
data make another run. Its folder, `runs/IDENTITY`, is an ordinary run folder.

A worker counts its attempts in a file beside the folder before it begins. A worker that is killed
can tell nobody, but the next one sees what it was in the middle of, and goes on from the folder's
checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rectified.errors import UserError
from rectified.jobs.job import perform
from rectified.jobs.sweep.settings import job_for
from rectified.runs import CONFIG, RESULTS, FolderInUse, Run, environment, to_json

_WAIT_SECONDS = 20.0  # for a worker that was given up, but has not noticed yet
_ONE_AT_A_TIME = threading.Lock()  # a run has its process's random state to itself


@dataclass(frozen=True)
class Task:
    """The task of a worker; small, since it travels.

    Attributes:
        verb: whose job does it.
        point: the settings of the grid that are this run's.
        settings: all of its settings, resolved: the verb's config.
        path: its folder, absolute, on a file system that the workers share.
        home: the folder that paths in the settings start from.
        threads: that it may use.
        tries: attempts, in all.
        sweeper: the process that hands the runs out.
    """

    verb: str
    point: Mapping[str, Any]
    settings: Any
    path: Path
    home: Path
    threads: int
    tries: int
    sweeper: int

    @property
    def identity(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """Whether its results are there."""
        return (self.path / RESULTS).is_file()

    @property
    def attempts(self) -> int:
        """The number of times that a worker has begun it in this sweep."""
        try:
            return self._ledger.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def words(self) -> str:
        """The point, for people."""
        return " ".join(f"{name}={_written(value)}" for name, value in self.point.items())

    @property
    def _ledger(self) -> Path:
        return self.path.with_name(f"{self.identity}.attempts")

    def count_attempt(self) -> None:
        """Say that a worker begins; one byte per attempt, which no two workers can confuse."""
        with self._ledger.open("ab") as file:
            file.write(b".")

    def forget_attempts(self) -> None:
        """Begin to count anew."""
        self._ledger.unlink(missing_ok=True)


def _written(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


State = Literal["finished", "failed", "again"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attempt.

    Attributes:
        identity: of the run.
        state: `finished`; `failed`, for good; or `again`: it may yet succeed.
        message: why it did not finish.
        fault: the traceback, where the cause is not a mistake in the settings.
        seconds: that the attempt took.
    """

    identity: str
    state: State
    message: str = ""
    fault: str = ""
    seconds: float = 0.0


def identity(verb: str, settings: Any) -> str:
    """The identity of a run: 16 hexadecimal digits.

    Args:
        verb: what it does.
        settings: its resolved config, a dataclass.

    Example:
        >>> from rectified.jobs.prune.settings import PruneConfig
        >>> one, other = PruneConfig(seed=1), PruneConfig(seed=2)
        >>> identity("prune", one) == identity("prune", PruneConfig(seed=1))
        True
        >>> identity("prune", one) == identity("prune", other)
        False
    """
    digest = hashlib.sha256()
    plain = asdict(settings)
    digest.update(to_json({"verb": verb, "settings": dict(sorted(plain.items()))}).encode())
    for text in _words_in(plain):
        digest.update(_contents(text).encode())
    return digest.hexdigest()[:16]


def _words_in(value: Any) -> Iterator[str]:
    """Every text in nested settings: any of them may name a file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _words_in(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _words_in(entry)


_known: dict[tuple[Any, ...], str] = {}


def _contents(text: str) -> str:
    """A digest of the files that `text` names, each read once while it stays as it is."""
    try:
        path = Path(text).resolve()
        files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    except (OSError, ValueError):  # no path at all
        return ""
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            continue
        facts = file.stat()
        key = (file, facts.st_size, facts.st_mtime_ns)
        if key not in _known:
            with file.open("rb") as stream:
                _known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path)} {_known[key]}\n".encode())
    return digest.hexdigest() if files else ""


def work(task: Task) -> Outcome:
    """Do a run, or go on with it; what goes wrong comes back as an outcome.

    Args:
        task: the run.
    """
    with _ONE_AT_A_TIME, contextlib.chdir(task.home):
        if task.finished:
            return Outcome(task.identity, "finished")
        if task.attempts >= task.tries:
            return Outcome(task.identity, "failed", _died(task))
        task.path.parent.mkdir(parents=True, exist_ok=True)
        task.count_attempt()
        started = time.perf_counter()
        outcome = _attempted(task)
        return replace(outcome, seconds=time.perf_counter() - started)


def _attempted(task: Task) -> Outcome:
    try:
        _attempt(task)
    except FolderInUse as error:
        return Outcome(task.identity, "again", str(error))
    except UserError as error:  # it would be the same elsewhere
        return Outcome(task.identity, "failed", str(error))
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        state: State = "failed" if task.attempts >= task.tries else "again"
        return Outcome(task.identity, state, message, traceback.format_exc())
    return Outcome(task.identity, "finished")


def _died(task: Task) -> str:
    return (
        f"its worker was lost {task.attempts} times (out of memory?): give it fewer neighbours "
        "(--workers), or smaller settings"
    )


def _attempt(task: Task) -> None:
    import torch

    _leave_interrupts_to_the_sweep(task.sweeper)
    before = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        with contextlib.closing(_folder(task)) as folder:
            place = shlex.quote(str(task.path / CONFIG))
            facts = {**environment(), "command": f"rectified {task.verb} --config {place}"}
            perform(job_for(task.verb, task.settings), task.settings, folder, facts, False)
    finally:
        torch.set_num_threads(before)


def _folder(task: Task) -> Run:
    """The run's folder, once nobody else is working in it."""
    return Run(task.path, resume=(task.path / CONFIG).is_file(), patience=_WAIT_SECONDS)


def _leave_interrupts_to_the_sweep(sweeper: int) -> None:
    """Ctrl-C reaches every process of a terminal; the sweep's own ends its workers."""
    if os.getpid() != sweeper and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
