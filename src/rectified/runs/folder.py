"""A run's folder while it is worked in: taken, locked, written and let go.

Every file is written whole or not at all (to a temporary name, then renamed). A lock keeps a
second process out; it goes with the process that holds it, however that ends. A folder with links
in it is not worked in: it could be somebody else's, and a link would lead what we write elsewhere.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rectified import __version__
from rectified.errors import UserError
from rectified.files import (
    TEMPORARY,
    plain,
    read_json,
    read_tensors,
    to_json,
    write_tensors,
    write_text,
)
from rectified.runs.card import card
from rectified.runs.checkpoint import FileStore
from rectified.runs.results import RESULTS
from rectified.runs.settings import CONFIG, write_config

METRICS, WEIGHTS, CHECKPOINT = "metrics.jsonl", "model.safetensors", "checkpoint"
ENVIRONMENT = "environment.json"
_LOCK = ".lock"


class FolderInUse(UserError):
    """Another process holds the lock of a run's folder."""


class Run:
    """A run folder that is being worked in.

    Nothing is written before `begin`, so that a mistake found until then leaves nothing behind.

    Args:
        path: the folder: new, empty, or an unfinished run's with `resume`.
        resume: go on with what is there.
        replace: a finished or unfinished run may be there, and is removed at `begin`.
        writer: false in all but one of several processes: they read, but write nothing.
        patience: seconds to wait for another process that works in the folder.

    Raises:
        UserError: if the folder is somebody else's, or holds a run that was not asked for.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume: bool = False,
        replace: bool = False,
        writer: bool = True,
        patience: float = 0.0,
    ) -> None:
        self.path = path
        self.patience = patience
        self.resume = resume
        self.replace = replace
        self.writer = writer
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []  # to what is logged
        self._lock: Any = None
        if writer:
            self._check()

    def _check(self) -> None:
        path, own = self.path, (self.path / CONFIG).is_file()
        links = [p for p in (path, *path.rglob("*")) if p.is_symlink()] if path.is_dir() else []
        inside = [link for link in links if link != path]
        if own and inside and (self.resume or self.replace):
            raise UserError(
                f"{path} holds a link ({inside[0].name}), which a run never makes: remove it"
            )
        if self.resume and not own:
            raise UserError(f"nothing to resume in {path}: it has no {CONFIG}")
        if self.resume:
            _see_that_draws_are_ours(path)
            drop_checkpoint(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: give --out a folder that is new or empty")
        if path.is_dir() and not own and not all(_is_leftover(p) for p in path.iterdir()):
            raise UserError(
                f"{path} holds files that are not a run's: give --out a folder that is new or empty"
            )
        if own and not self.resume and not self.replace:
            remedy = "choose another --out" if self.finished else f"go on with --resume {path}"
            raise UserError(f"{path} already holds a run: {remedy}, or remove it")

    @property
    def begun(self) -> bool:
        """Whether there is something to resume."""
        return (self.path / CONFIG).is_file()

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return (self.path / RESULTS).is_file()

    def begin(self, verb: str, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Take the folder: lock it and write settings and environment.

        Raises:
            FolderInUse: if another process works in it.
            OSError: if it cannot be written.
        """
        if not self.writer:
            return
        is_new = not self.path.exists()
        self._make()
        self._take()
        try:
            self._write_settings(verb, config, environment)
        except OSError:
            if not self.resume:
                self._withdraw(is_new)
            raise

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be made ({error.strerror}): give --out a place that you may "
                "write to"
            ) from error

    def _take(self) -> None:
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=self.patience)
        except Timeout:
            raise FolderInUse(
                f"another process is working in {self.path}: wait, or use another --out"
            ) from None
        self._lock = lock

    def _write_settings(
        self, verb: str, config: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> None:
        if self.replace:
            self._empty()
        for stale in list(self.path.rglob(f".*{TEMPORARY}")):  # of a process that was killed
            _remove(stale)
        if not self.resume:
            write_config(self.path / CONFIG, verb, config)
        if not (self.path / ENVIRONMENT).exists():
            write_text(self.path / ENVIRONMENT, to_json(environment, indent=2))
        self.log({"event": "resume" if self.resume else "start", "verb": verb})

    def _empty(self) -> None:
        entries = [entry for entry in self.path.iterdir() if entry.name != _LOCK]
        # the settings last: without them the rest would be somebody else's
        for entry in sorted(entries, key=lambda entry: entry.name == CONFIG):
            _remove(entry)

    def _withdraw(self, is_new: bool) -> None:
        """Leave nothing of a run that could not begin."""
        self._empty()
        (self.path / _LOCK).unlink(missing_ok=True)
        self.close()
        if is_new:
            self.path.rmdir()

    def log(self, event: Mapping[str, Any]) -> None:
        """Append one event to metrics.jsonl, and tell it to those who listen."""
        if not self.writer:
            return
        for listen in self.listeners:
            listen(event)
        line = (to_json({"time": round(time.time(), 3), **event}) + "\n").encode()
        with (self.path / METRICS).open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(line) < len(line):  # a full disk takes a part
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / METRICS))

    def store(self, name: str) -> FileStore:
        """A place in checkpoint/ for what is needed to go on."""
        return FileStore(self.path / CHECKPOINT / f"{name}.safetensors", writer=self.writer)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self.write_text(name, to_json(value, indent=1))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        if self.writer:
            write_text(self.path / name, text)

    def write_weights(
        self, state: Mapping[str, Any], metadata: Mapping[str, str], name: str = WEIGHTS
    ) -> None:
        """Write a state_dict as safetensors, with a few words about it."""
        import torch

        if self.writer:
            plain = torch.contiguous_format
            tensors = {  # copies, since safetensors refuses tensors that share memory
                key: value.detach().cpu().clone(memory_format=plain) for key, value in state.items()
            }
            write_tensors(self.path / name, tensors, metadata)

    def write_results(
        self,
        verb: str,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        summary: Sequence[Mapping[str, Any]],
        **more: Any,
    ) -> None:
        """Write results.json, which says that the run is complete, and drop the checkpoint."""
        results = {
            "verb": verb,
            "config": config,
            "environment": environment,
            "rows": rows,
            "summary": summary,
            **more,
        }
        if self.writer and (self.path / WEIGHTS).is_file():
            _, about = read_tensors(self.path / WEIGHTS)
            self.write_text("README.md", card(plain(results), about))
        self.write_json(RESULTS, results)
        if self.writer:
            drop_checkpoint(self.path)

    def close(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.release()


def drop_checkpoint(path: Path) -> None:
    """Remove what a finished run in `path` no longer needs.

    A process that is killed just after its results were written leaves it there.
    """
    if (path / RESULTS).is_file():
        shutil.rmtree(path / CHECKPOINT, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    """A lock, or what a process that was killed left half-written."""
    return path.name == _LOCK or (path.name.startswith(".") and path.suffix == TEMPORARY)


def default_path(verb: str, data: str) -> Path:
    """`runs/VERB-DATA-TIME`.

    Example:
        >>> default_path("prune", "../data/cifar10").name.rpartition("-")[0].rpartition("-")[0]
        'prune-cifar10'
    """
    name = "".join(c if c.isalnum() else "_" for c in Path(data).name) or "data"
    base = Path("runs") / f"{verb}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return base if not base.exists() else base.with_name(f"{base.name}-{os.getpid()}")


def _see_that_draws_are_ours(path: Path) -> None:
    """Refuse to go on with a run of a version that draws other random numbers.

    Raises:
        UserError: if the run is of another minor version; one that does not say is gone on with.
    """
    try:
        facts = read_json(path / ENVIRONMENT)
        began = str(facts["packages"]["rectified"])
    except (UserError, LookupError, TypeError):
        return
    if began.split(".")[:2] != __version__.split(".")[:2]:
        raise UserError(
            f"{path} was begun by rectified {began}, which draws other random numbers than "
            f"{__version__}: go on with it there, or begin anew with --config {path / CONFIG}"
        )
