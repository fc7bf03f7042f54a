"""Flags made from the fields of dataclasses of settings, and read over them.

On `argparse`, since it gives a mistake as an exception that names the flag, where tyro draws it in
a frame and keeps its hook for errors private; and it tells which flags were given, so that a run's
own settings can come in between. What a value may be is the annotation's matter
(`rectified.jobs.values`), as it is for files, grids and Python.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rectified.errors import UserError
from rectified.jobs import Entry
from rectified.jobs.values import Settings, hints_of, listings_of, read

HELP = ("-h", "--help")
_METAVARS: dict[object, str] = {
    int: "INT",
    float: "FLOAT",
    bool: "{true,false}",
    str: "TEXT",
    Path: "PATH",
}


def take(
    words: Sequence[str], default: Settings, verb: str, only: Collection[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Read the flags of one dataclass of settings.

    Args:
        words: of the command line.
        default: settings, whose fields are the flags.
        verb: whose help has more to say.
        only: the fields that are of interest; None: all.

    Returns:
        The settings that were given, by name; and the words that are none of these flags.

    Raises:
        UserError: for a flag without its value, or with one that it cannot have.
    """
    parser = _parser()
    _add_flags(parser.add_argument, default, only)
    try:
        given, others = parser.parse_known_args([_hyphened(word) for word in words])
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name} {error.message}; {_more(verb)}") from None
    return {name: tuple(v) if isinstance(v, list) else v for name, v in vars(given).items()}, others


def refuse_unknown(words: Sequence[str], verb: str, groups: Iterable[Settings]) -> None:
    """See that no words are left.

    Args:
        words: those that are no flags of any group.
        verb: whose help has more to say.
        groups: the settings that have flags.

    Raises:
        UserError: if there are some.
    """
    if not words:
        return
    known = [f"--{_hyphens(field.name)}" for group in groups for field in fields(group)]
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    near = [near for flag in flags for near in difflib.get_close_matches(flag, known, 1)]
    perhaps = f"; perhaps {near[0]}" if near else ""
    raise UserError(f"unknown options: {', '.join(words)}{perhaps}; {_more(verb)}")


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether one of the words does."""
    return not set(HELP).isdisjoint(words)


def help_page(verb: str, entry: Entry, operand: str, groups: Mapping[str, Settings]) -> str:
    """The text of `rectified VERB --help`.

    Args:
        verb: the verb.
        entry: its row of the registry.
        operand: what stands behind the verb, or nothing.
        groups: the settings that have flags, by what they are of.
    """
    examples = "\n".join(f"  rectified {verb} {example}" for example in entry.examples)
    summary = f"{entry.summary[0].upper()}{entry.summary[1:]}."
    parser = _parser(
        prog=f"rectified {verb}",
        usage=" ".join(["rectified", verb, *([operand] if operand else []), "[options]"]),
        description=f"{summary}\n\nexamples:\n{examples}",
    )
    for name, default in groups.items():
        about = (inspect.getdoc(type(default)) or "").partition("\n")[0]
        _add_flags(parser.add_argument_group(f"{name} options", about).add_argument, default)
    return parser.format_help()


def _parser(**how: Any) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        **how,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_flags(
    add: Callable[..., object], default: Settings, only: Collection[str] | None = None
) -> None:
    listings = {name: one.help for name, one in listings_of(type(default)).items()}
    about = documented(type(default)) | listings
    for name, hint in hints_of(type(default)).items():
        if only is not None and name not in only:
            continue
        text = f"{about.get(name, '')} {_default(getattr(default, name))}"
        add(f"--{_hyphens(name)}", help=text.strip().replace("%", "%%"), **_kind(hint))


def _kind(hint: object) -> dict[str, Any]:
    """Arguments for argparse that read a value of this annotation."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    several = {"nargs": "*"} if get_origin(hint) is tuple else {}
    one = get_args(hint)[0] if several else hint
    return {"type": partial(_read, hint=one), "metavar": _metavar(hint), **several}


def _read(word: str, hint: object) -> object:
    try:
        return read(word, hint)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _metavar(hint: object) -> str:
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        listed = _metavar(get_args(inside[0])[0]).replace("TEXT", "NAME")
        return f"{listed}{inside[1].sign}..."
    if kind in (Union, UnionType):
        return _metavar(next(one for one in inside if one is not NoneType))
    if kind is Literal:
        return f"{{{','.join(inside)}}}"
    return _METAVARS[inside[0] if kind is tuple else hint]


def _default(value: object) -> str:
    return "" if value is None else f"(default: {_typed(value)})"


def _typed(value: object) -> str:
    """A value as it is typed."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def documented(config: type) -> dict[str, str]:
    """The docs of attributes, by name, from the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for one in reversed(config.__mro__):
        section = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")[2]
        found |= dict(re.findall(r"^    (\w+): (.+(?:\n {5,}.+)*)", section, re.MULTILINE))
    return {name: " ".join(text.split()) for name, text in found.items()}


def _hyphened(word: str) -> str:
    """`--flag_name` is taken for `--flag-name`."""
    name, equals, value = word.partition("=")
    return f"{_hyphens(name)}{equals}{value}" if word.startswith("--") else word


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def _more(verb: str) -> str:
    return f"see rectified {verb} --help"
