"""Foreign code: `module:factory` in settings is imported here, and only if somebody said so.

A settings file may come from anybody, with a run, by mail. So a factory that stands in a file, or a
folder whose scripts would be run (`mpnn`), and not on the command line, is asked about in a
terminal and refused elsewhere. What was typed once is remembered, for the folder in which it was
typed (that is where the module is looked for), outside of any run: `--resume` of one's own run
needs no other flag.

    $XDG_STATE_HOME/rectified/factories.json      (~/.local/state by default)
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rectified.errors import UserError, first_line

FOLDERS = ("mpnn",)  # settings that name a folder of scripts
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_BETWEEN = re.compile(r"[\s,+='\"]+")  # of command lines, lists and grids


def imported(code: str, *, kind: str) -> Any:
    """The object `module:name`, looked for in the present folder and among what is installed.

    Args:
        code: `module:name`.
        kind: what it is meant to be, for the message.

    Raises:
        UserError: if it cannot be imported.

    Example:
        >>> imported("math:tau", kind="number")
        6.283185307179586
    """
    module, _, name = code.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: people keep their code beside them
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever stands in somebody's module
        raise UserError(
            f"{kind} {code!r} cannot be imported ({first_line(error)}): write module:factory, both "
            "importable from the present folder"
        ) from error


def factories(value: Any) -> Iterator[str]:
    """Every `module:factory` in nested settings.

    Example:
        >>> list(factories({"model": "mine:net", "rewind": "epoch:2", "grid": "model=a:b,mlp"}))
        ['mine:net', 'a:b']
    """
    if isinstance(value, str):
        yield from (word for word in _BETWEEN.split(value) if _FACTORY.fullmatch(word))
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from factories(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from factories(entry)


def folders(value: Any) -> Iterator[str]:
    """Every folder of scripts in nested settings, and in grids of them.

    Example:
        >>> list(folders({"mpnn": "a b", "settings": {"mpnn": None}, "grid": "seed=0 mpnn=c,d"}))
        ['a b', 'c', 'd']
    """
    if isinstance(value, str):
        for name in FOLDERS:
            for names in re.findall(rf"(?:^|\s){name}=(\S+)", value):
                yield from names.split(",")
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            named = key in FOLDERS and isinstance(entry, str)
            yield from [entry] if named else folders(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from folders(entry)


def check_consent(settings: Mapping[str, Any], arguments: Sequence[str], file: str | None) -> None:
    """See that somebody typed all code that `settings` name, now or before, or agrees now.

    Args:
        settings: all of the run's.
        arguments: the command line.
        file: where settings were read from; None if they were not.

    Raises:
        UserError: if code would run that nobody asked for.
    """
    named = dict.fromkeys(factories(settings), "--model")
    named |= dict.fromkeys(folders(settings), f"--{FOLDERS[0]}")
    if not named:
        return
    here = str(Path.cwd())
    known = set(_remembered().get(here, ()))
    for code, flag in named.items():
        if file is None or code in known or _is_typed(code, arguments):
            continue
        if not _agrees(code, file):
            raise UserError(
                f"{code!r} stands in {file} and would run code of this folder or of a package: "
                f"if you trust it, say so with {flag} {code}"
            )
    _remember(here, known | set(named))


def _is_typed(code: str, arguments: Sequence[str]) -> bool:
    words = [*arguments, *(word.partition("=")[2] for word in arguments)]
    return code in words or code in factories(words) or code in folders(words)


def _agrees(code: str, file: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{code!r} stands in {file} and would run code. Run it? [y/N] ", end="", file=sys.stderr)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "rectified" / "factories.json"


def _remembered() -> dict[str, list[str]]:
    try:
        remembered = json.loads(_file().read_text(encoding="utf-8"))
        return {str(k): list(map(str, v)) for k, v in remembered.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # nothing is remembered


def _remember(here: str, named: set[str]) -> None:
    remembered = _remembered()
    if set(remembered.get(here, ())) == named:
        return
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        _file().write_text(json.dumps({**remembered, here: sorted(named)}), encoding="utf-8")
    except OSError:  # a home that cannot be written: it will be asked again
        return
