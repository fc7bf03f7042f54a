"""The run folder: everything that one run was told and found, on disk.

    config.yaml        all settings, resolved; `--config` and `--resume` read it back
    environment.json   versions, machine, command
    metrics.jsonl      one JSON object an event, as they happen
    results.json       rows and summary; written last, so a folder that has it is finished
    model.safetensors  weights
    README.md          the model's card, in the Hub's format, where there are weights
    checkpoint/        what an unfinished run needs to go on; gone when it is done
    report.html        the page

Every file is written whole or not at all (to a temporary name, then renamed). A lock keeps a
second process out; it goes with the process that holds it, however that ends. Tensors are stored
as safetensors, so reading a folder executes nothing in it, and with a hash, so that a damaged
checkpoint is no checkpoint. A folder with links in it is not worked in: it could be somebody
else's, and a link would lead what we write elsewhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rectified.cards import card
from rectified.errors import UserError

CONFIG, RESULTS, METRICS = "config.yaml", "results.json", "metrics.jsonl"
WEIGHTS, CHECKPOINT = "model.safetensors", "checkpoint"
_LOCK, _TEMPORARY = ".lock", ".tmp"
_PACKAGES = ("rectified", "torch", "numpy", "scipy", "scikit-learn", "accelerate", "safetensors")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name at the end, if all went well.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic(target) as temporary: _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # some writers make files that only the owner may read
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say where; the temporary name says little
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as temporary:
        # a name from a file system need not be text; what it is shown as is JSON's escape, too
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON; numbers that are not finite become null.

    Example:
        >>> to_json({"a": float("nan"), "b": (1, 2)})
        '{"a": null, "b": [1, 2]}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def save_tree(path: Path, tree: Any) -> None:
    """Store nested dicts, lists and tuples of tensors and plain values in one safetensors file.

    A tensor that occurs more than once is stored once. Tuples come back as lists.

    Raises:
        TypeError: for a value that is neither a tensor nor plain.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            place = value.data_ptr() if value.numel() else id(value)
            key = (place, value.shape, value.stride(), value.dtype)
            name = names.setdefault(key, f"t{len(names)}")
            if name not in tensors:
                tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[encode(key), encode(entry)] for key, entry in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [encode(entry) for entry in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise TypeError(f"cannot store a {type(value).__name__}")

    skeleton = json.dumps(encode(tree))
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_tensors(path, tensors, {"tree": skeleton, "sha256": _hash(skeleton, tensors)})


def _hash(skeleton: str, tensors: Mapping[str, Any]) -> str:
    """Of a whole tree: bits that flip on a disk are told from a state that training reached."""
    import torch

    digest = hashlib.sha256(skeleton.encode())
    for name in sorted(tensors):
        whole = tensors[name].contiguous()
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        if whole.numel():
            digest.update(memoryview(whole.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save

    with atomic(path) as temporary:
        # not `save_file`, whose exception does not say that the disk is full
        temporary.write_bytes(save(dict(tensors), dict(metadata)))


def load_tree(path: Path) -> Any:
    """Read what `save_tree` stored.

    Raises:
        UserError: if the file is damaged or was not written by `save_tree`.
    """
    from safetensors import SafetensorError, safe_open

    damage = (SafetensorError, LookupError, TypeError, ValueError, AttributeError, OSError)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata() or {}
        if _hash(about["tree"], tensors) != about["sha256"]:
            raise ValueError("its hash is another")
        return _decode(json.loads(about["tree"]), tensors)
    except (*damage, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path} is damaged or not a checkpoint of ours ({reason})") from error


def _decode(node: Any, tensors: Mapping[str, Any]) -> Any:
    (kind, value), *_ = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {_decode(key, tensors): _decode(entry, tensors) for key, entry in value}
    if kind == "list":
        return [_decode(entry, tensors) for entry in value]
    return value


class FolderInUse(UserError):
    """Another process holds the lock of a run's folder."""


class FileStore:
    """One entry of a checkpoint folder: a tree in a file. Fits `rectified.training.Store`."""

    def __init__(self, path: Path, *, writer: bool = True) -> None:
        self.path = path
        self.writer = writer

    def load(self) -> Any | None:
        """What was saved, or None."""
        return load_tree(self.path) if self.path.exists() else None

    def save(self, state: Any, /) -> None:
        """Replace what was saved."""
        if self.writer:
            save_tree(self.path, state)


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
        for stale in self.path.rglob(f".*{_TEMPORARY}"):  # of a process that was killed
            stale.unlink()
        if not self.resume:
            write_config(self.path / CONFIG, verb, config)
        if not (self.path / "environment.json").exists():
            write_text(self.path / "environment.json", to_json(environment, indent=2))
        self.log({"event": "resume" if self.resume else "start", "verb": verb})

    def _empty(self) -> None:
        entries = [entry for entry in self.path.iterdir() if entry.name != _LOCK]
        # the settings last: without them the rest would be somebody else's
        for entry in sorted(entries, key=lambda entry: entry.name == CONFIG):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

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
            _write_tensors(self.path / name, tensors, metadata)

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
            self.write_text("README.md", card(_plain(results), _metadata(self.path / WEIGHTS)))
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


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _is_leftover(path: Path) -> bool:
    """A lock, or what a process that was killed left half-written."""
    return path.name == _LOCK or (path.name.startswith(".") and path.suffix == _TEMPORARY)


def write_config(path: Path, verb: str, config: Mapping[str, Any]) -> None:
    """Write settings as YAML, the verb first."""
    import yaml

    write_text(path, yaml.safe_dump({"verb": verb, **_plain(config)}, sort_keys=False))


def read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """The verb and the settings in a config.yaml.

    Raises:
        UserError: if there is no such file, or it is not one of ours.
    """
    try:
        found = _load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"no settings at {path} ({error.strerror}): give the {CONFIG} of an earlier run"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path} is not a YAML file of settings ({reason})") from error
    if not isinstance(found, dict) or not isinstance(found.get("verb"), str):
        raise UserError(f"{path} is not a run's {CONFIG}: it does not say which verb it is for")
    if not all(isinstance(name, str) for name in found):
        raise UserError(f"{path} is not a run's {CONFIG}: a setting's name is no text")
    verb = found.pop("verb")
    return verb, found


def _load_yaml(text: str) -> Any:
    """Plain values: no tags that make objects, and no aliases, which can stand for terabytes."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise ValueError("it has an alias (*), which settings have no use for")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (TypeError, AttributeError, LookupError, OverflowError) as error:  # odd scalars
        raise ValueError(f"{type(error).__name__}: {error}") from error


def read_results(path: Path) -> dict[str, Any]:
    """The results of a finished run.

    Args:
        path: the run's folder.

    Raises:
        UserError: if the run is not finished, or its file is damaged.
    """
    file = path / RESULTS
    found = read_json(file)
    needed = {"verb", "config", "environment", "rows", "summary"}
    missing = needed - set(found if isinstance(found, dict) else ())
    if missing:
        raise UserError(f"{file} lacks {', '.join(sorted(missing))}: it is not a run's results")
    kinds = {"verb": str, "config": dict, "environment": dict, "rows": list, "summary": list}
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            raise UserError(f"{file} is damaged ({name} is no {kind.__name__})")
    for name in ("rows", "summary"):
        if not all(isinstance(row, dict) for row in found[name]):
            raise UserError(f"{file} is damaged (an entry of {name} is no dict)")
    return found


def read_json(file: Path) -> Any:
    """What a JSON file of a finished run holds.

    Raises:
        UserError: if there is no such file, or it is damaged.
    """
    if not file.is_file():
        raise UserError(f"{file.parent} has no {file.name}: it is not a finished run")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{file} is damaged ({reason})") from error


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process."""
    import torch

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "command": shlex.join(["rectified", *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def default_path(verb: str, data: str) -> Path:
    """`runs/VERB-DATA-TIME`.

    Example:
        >>> default_path("prune", "../data/cifar10").name.rpartition("-")[0].rpartition("-")[0]
        'prune-cifar10'
    """
    name = "".join(c if c.isalnum() else "_" for c in Path(data).name) or "data"
    base = Path("runs") / f"{verb}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return base if not base.exists() else base.with_name(f"{base.name}-{os.getpid()}")
