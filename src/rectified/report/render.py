"""A page -> one HTML file that needs nothing else.

Template, style and script lie beside this file and are put into one string. Three rules make the
page safe to open anywhere:

- jinja2 escapes every text; the only markup let through is that of the figures.
- A content security policy forbids every request, and every script but ours, which it knows by its
  hash: markup that slipped through could neither run nor call home.
- The ids inside a figure get the figure's number in front, so that several drawings by the same
  hand (whose clip paths and markers are all called alike) do not borrow from one another.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from rectified.errors import UserError
from rectified.report.page import EN_DASH, Cell, Page, Section, Structures, Table, is_number
from rectified.report.structures import trace, viewer

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

_FOLDER = Path(__file__).parent
_TAG = re.compile(r"""<(?:[^<>"']|"[^"]*"|'[^']*')*>""")
# An id where it is given (id="a") and where it is used (url(#a), href="#a").
_ID = re.compile(r"""(\bid=["']|url\(["']?#|href=["']#)""")


def render(page: Page) -> str:
    """Return the HTML of `page`.

    Args:
        page: the report.

    Returns:
        A complete document, in UTF-8 once encoded; the same for the same page.

    Raises:
        UserError: if a figure is not one well-formed `<svg>` element.

    Example:
        >>> from rectified.report import Page, Section, Text, render
        >>> page = Page("Pruning", "digits", (Section("Result", (Text(("a < b",)),)),))
        >>> "<p>a &lt; b</p>" in render(page)
        True
    """
    scripts = [_read("page.js")]
    if any(isinstance(part, Structures) for section in page.sections for part in section.parts):
        library = viewer()
        scripts = [*([library] if library else []), *scripts]
    return _template().render(
        page=page,
        has_contents=len(page.sections) > 3,
        style=_read("page.css"),
        scripts=scripts,
        hashes=[b64encode(sha256(script.encode()).digest()).decode() for script in scripts],
    )


@cache
def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").strip()


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "groups": _groups,
        "cells": _cells,
        "breakable": _breakable,
        "sort_key": _sort_key,
        "flat": lambda mapping: list(_flat(mapping)),
        "drawing": _drawing,
        "trace": trace,
    }
    return environment.get_template("page.html")


def _groups(section: Section) -> list[tuple[str, list[Any]]]:
    """Runs of neighbouring parts of one kind, so that verdicts can share a row."""
    runs = groupby(section.parts, key=lambda part: type(part).__name__)
    return [(kind, list(parts)) for kind, parts in runs]


def _cells(row: Sequence[Cell], table: Table) -> list[tuple[Cell, str]]:
    """Each value of a row with its text; an undefined number is a gap."""
    pairs = zip(row, table.columns, strict=True)
    return [(v if v == v else None, column.written(v)) for v, column in pairs]


def _breakable(name: str) -> "Markup":
    """Let a long name such as `dynamic_dnr_mean` break after its underscores."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(map(escape, name.split("_")))


def _sort_key(value: Cell) -> str:
    """The number behind a cell as the script reads it; empty where there is none."""
    return json.dumps(float(value)) if is_number(value) else ""  # type: ignore[arg-type]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts: `{"a": {"b": 1}}` gives `("a.b", "1")`."""
    for name, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _setting(value)


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value)) or EN_DASH
    return EN_DASH if value is None or value == {} else str(value)


def _drawing(svg: str, prefix: str) -> "Markup":
    """The markup of a figure, with ids that are its own."""
    from markupsafe import Markup

    _check_svg(svg)
    return Markup(_TAG.sub(lambda tag: _ID.sub(rf"\g<1>{prefix}-", tag[0]), svg))


def _check_svg(svg: str) -> None:
    rule = "the svg of a figure must be one well-formed <svg> element"
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise UserError(f"{rule}, got {svg[:40]!r} ({error})") from error
    if root.tag.rpartition("}")[2] != "svg" or not svg.startswith("<svg"):
        raise UserError(f"{rule}, got {svg[:40]!r}")
