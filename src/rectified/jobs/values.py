"""Words and plain values -> what a setting's annotation says: for flags, files, grids and Python.

    int, float, bool, str, Path    as Python reads them; true and false in any case
    Literal["a", "b"]              one of these
    X | None                       `none`, or what X may be
    tuple[X, ...]                  several words; `Words` and `Numbers`: one, with commas in it

A value that is no text (from YAML, from Python) must be of the annotation's type: a list may stand
for a tuple and a whole number for a float, nothing else is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from rectified.errors import UserError, choose

Settings = Any
"""A frozen dataclass of settings; of which class, a verb decides."""


@dataclass(frozen=True)
class Between:
    """The separator of the entries of a list that is written in one word."""

    sign: str


@dataclass(frozen=True, eq=False)
class Listing:
    """The help of a setting that takes names of a table: some words, then the names.

    Example:
        >>> Listing("arms: ", {"ste": 1, "reste": 2}).help
        'arms: ste, reste.'
    """

    words: str
    table: Iterable[str]

    @property
    def help(self) -> str:
        """For the option; the table may have grown since the class was made."""
        return f"{self.words}{', '.join(self.table)}."


Words = Annotated[tuple[str, ...], Between(",")]
"""A list of names: `--score magnitude,lamp`."""

Numbers = Annotated[tuple[int, ...], Between(",")]
"""A list of whole numbers: `--steps 1,2,4`."""

_UNFIT = (ValueError, TypeError, LookupError, OverflowError)  # what conversions say


def read(value: object, hint: object, between: str = "") -> Any:
    """Return `value` as the annotation `hint` has it.

    Args:
        value: a word that somebody wrote, or a value that is plain already.
        hint: the annotation, its extras included.
        between: what stands between the entries of a list that is written in one word; by default
            what the annotation says.

    Raises:
        ValueError: if it cannot be; its text may stand behind the setting's name.

    Example:
        >>> read("1,2", Numbers), read("none", int | None), read(1, float)
        ((1, 2), None, 1.0)
        >>> read("1.5", int | None)
        Traceback (most recent call last):
        ...
        ValueError: must be a whole number or none, got '1.5'
    """
    try:
        return _read(value, hint, between)
    except _UNFIT:
        raise ValueError(f"must be {described(hint)}, got {value!r:.100}") from None


def _read(value: object, hint: object, between: str) -> object:
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _read(value, inside[0], between or inside[1].sign)
    if kind in (Union, UnionType):
        return _read_any(value, sorted(inside, key=lambda one: one is not NoneType), between)
    if kind is Literal:
        return inside[inside.index(value)]
    if kind is tuple:
        return tuple(_read(entry, inside[0], between) for entry in _entries(value, between))
    return _SCALARS[hint](value)


def _read_any(value: object, hints: Iterable[object], between: str) -> object:
    """The first reading that there is."""
    for hint in hints:
        with suppress(*_UNFIT):
            return _read(value, hint, between)
    raise ValueError(value)


def _entries(value: object, between: str) -> list[object]:
    if isinstance(value, str) and not between:
        return [value]
    if isinstance(value, str):
        return [entry.strip() for entry in value.split(between) if entry.strip()]
    if isinstance(value, list | tuple):
        return list(value)
    raise TypeError(value)


def _nothing(value: object) -> None:
    if str(value).lower() != "none":
        raise ValueError(value)


def _truth(value: object) -> bool:
    return {"true": True, "false": False}[str(value).lower()]


def _whole(value: object) -> int:
    return int(_of_kind(Integral, value))


def _number(value: object) -> float:
    return float(_of_kind(Real, value))


def _of_kind(kind: type, value: object) -> Any:
    """A word, or a number of this kind, which a truth value is not."""
    if isinstance(value, bool) or not isinstance(value, kind | str):
        raise TypeError(value)
    return value


def _text(value: object) -> str:
    if not isinstance(value, str | Path):
        raise TypeError(value)
    return str(value)


_SCALARS: dict[object, Callable[[Any], object]] = {
    NoneType: _nothing,
    bool: _truth,
    int: _whole,
    float: _number,
    str: _text,
    Path: Path,
}
_DESCRIBED: dict[object, str] = {
    NoneType: "none",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


def described(hint: object) -> str:
    """The values that an annotation allows, in words.

    Example:
        >>> described(Literal["sgd", "adam"] | None), described(Numbers)
        ('one of sgd, adam, or none', 'a list of whole numbers')
    """
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return described(inside[0])
    if kind in (Union, UnionType):
        first, *others = sorted(inside, key=lambda one: one is NoneType)
        comma = "," if get_origin(first) is Literal else ""
        return f"{described(first)}{comma} or {' or '.join(map(described, others))}"
    if kind is Literal:
        return f"one of {', '.join(map(str, inside))}"
    if kind is tuple:
        return f"a list of {described(inside[0]).removeprefix('a ')}s"
    return _DESCRIBED[hint]


def hints_of(config: type) -> dict[str, object]:
    """The annotations of a class of settings, without their listings, by name."""
    hints = get_type_hints(config, include_extras=True)
    return {field.name: _without_listing(hints[field.name]) for field in fields(config)}


def listings_of(config: type) -> dict[str, Listing]:
    """The settings that take names of a table."""
    hints = get_type_hints(config, include_extras=True)
    extras = ((name, one) for name, hint in hints.items() for one in get_args(hint))
    return {name: one for name, one in extras if isinstance(one, Listing)}


def _without_listing(hint: Any) -> Any:
    if get_origin(hint) is not Annotated:
        return hint
    inside, *extras = get_args(hint)
    kept = [one for one in extras if not isinstance(one, Listing)]
    return Annotated[inside, kept[0]] if kept else inside


def from_settings(config: type, settings: Mapping[str, Any], *, source: str) -> Settings:
    """Settings from a file as a config object; what the file leaves out is the class's default.

    Raises:
        UserError: for a setting that the config does not have, or a value that it cannot have.
    """
    return config(**_read_all(config, settings, f"in {source}"))


def override(default: Settings, settings: Mapping[str, Any], *, verb: str) -> Settings:
    """`default`, a config object, with the `settings` that somebody gave to a verb.

    Raises:
        UserError: as `from_settings`.
    """
    return replace(default, **_read_all(type(default), settings, f"of {verb}"))


def _read_all(config: type, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    hints = hints_of(config)
    values = {}
    for name, value in settings.items():
        choose(f"setting {where}", str(name)[:100], sorted(hints))
        try:
            values[name] = read(value, hints[name])
        except ValueError as error:
            raise UserError(f"{name} {where} {error}") from None
    return values
