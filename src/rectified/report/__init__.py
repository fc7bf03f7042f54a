"""Results -> one self-contained HTML page that opens without a network.

A page is plain data: a `Page` of `Section`s, each a tuple of parts (`Text`, `Verdict`, `Table` with
typed `Column`s, `Figure`, `KeyValues`, `Code`, `Structures`). `render` makes the HTML and
`terminal` plain text of the same parts; `lines` and `bars` make figures from numbers. The room
knows rows and columns, and nothing of any experiment.
"""

from rectified.report.page import (
    Code,
    Column,
    Figure,
    KeyValues,
    Page,
    Part,
    Section,
    Structures,
    Table,
    Text,
    Verdict,
)
from rectified.report.plots import Series, bars, lines
from rectified.report.render import render
from rectified.report.terminal import terminal

__all__ = [
    "Code",
    "Column",
    "Figure",
    "KeyValues",
    "Page",
    "Part",
    "Section",
    "Series",
    "Structures",
    "Table",
    "Text",
    "Verdict",
    "bars",
    "lines",
    "render",
    "terminal",
]
