"""Parts -> plain text for a terminal: those of the page, but for what has to be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import singledispatch

from rectified.report.page import Code, KeyValues, Section, Table, Text, Verdict


def terminal(sections: Iterable[Section]) -> str:
    """Return the parts of some sections as text, their headings left out.

    Figures and structures are for the page. Names are shown as they are: whoever prints them to a
    terminal sees to it that they cannot command it.

    Example:
        >>> from rectified.report import Section, Table, Text
        >>> table = Table("Arms", ("arm", "n"), [("off", 16), ("lite", None)])
        >>> print(terminal([Section("What was found", (Text(("Two arms.",)), table))]))
        Two arms.
        <BLANKLINE>
        Arms
        arm    n
        off   16
        lite   \N{EN DASH}
    """
    parts = [words for section in sections for part in section.parts if (words := _text(part))]
    return "\n\n".join(parts)


@singledispatch
def _text(_part: object) -> str:
    return ""


@_text.register
def _(part: Text) -> str:
    return "\n".join(part.paragraphs)


@_text.register
def _(part: Verdict) -> str:
    return f"{part.title}\n  {part.text}"


@_text.register
def _(part: Code) -> str:
    return part.text


@_text.register
def _(part: KeyValues) -> str:
    return "\n".join([part.title, *(f"  {name}: {value}" for name, value in part.mapping.items())])


@_text.register
def _(part: Table) -> str:
    heads = [column.head for column in part.columns]
    cells = [[c.written(v) for c, v in zip(part.columns, row, strict=True)] for row in part.rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    is_right = [part.is_numeric(index) for index in range(len(heads))]
    lines = ["  ".join(_padded(row, widths, is_right)).rstrip() for row in (heads, *cells)]
    return "\n".join([part.title, *lines, *([part.note] if part.note else [])])


def _padded(row: Sequence[str], widths: Sequence[int], is_right: Sequence[bool]) -> Iterator[str]:
    for text, width, right in zip(row, widths, is_right, strict=True):
        yield text.rjust(width) if right else text.ljust(width)
