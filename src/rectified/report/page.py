"""The parts that a page is made of: plain frozen data, with no idea of how it will look.

Every string here is *text*: `render` escapes it, whatever it holds. The one exception is the markup
of a `Figure`, which is inserted as it stands and so must come from a trusted maker, such as
`rectified.report.plots`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rectified.errors import UserError, choose

Cell = str | float | int | None
"""One value of a table; `None` means that there is none, and is shown as an en dash."""

TONES = ("gain", "loss", "neutral", "warning")
"""How a verdict may be taken."""


@dataclass(frozen=True)
class Text:
    """Paragraphs of running text.

    Args:
        paragraphs: one string a paragraph.
    """

    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """A finding in one line, as a card. Neighbouring verdicts stand side by side.

    Args:
        title: the finding, a few words: `"+1.8 points at 11% density"`.
        text: what it means, one or two sentences.
        tone: one of `TONES`; shown by a word and a sign, not by colour alone.

    Raises:
        UserError: if `tone` is not known.
    """

    title: str
    text: str
    tone: str = "neutral"

    def __post_init__(self) -> None:
        choose("tone", self.tone, TONES)


@dataclass(frozen=True)
class Table:
    """Rows under named columns, which a reader can sort. The first column names the row.

    Args:
        title: the caption.
        columns: the heads.
        rows: as many values a row as there are columns.
        note: a remark below the table.
        formats: column -> how its numbers are written: a format specification (`".1%"`) or a
            callable from the value to its text. Text and `None` are left alone.

    Raises:
        UserError: if a row has another length than `columns`, or `formats` names an unknown column.

    Example:
        >>> rows = [("dense", 0.971), ("pruned", None)]
        >>> Table("Arms", ("arm", "accuracy"), rows, formats={"accuracy": ".1%"}).columns
        ('arm', 'accuracy')
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    formats: Mapping[str, str | Callable[[Any], str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for column in self.formats:
            choose("column", column, self.columns)
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UserError(
                    f"each row of {self.title!r} must have {len(self.columns)} values, "
                    f"got {len(row)}"
                )


@dataclass(frozen=True)
class Figure:
    """A drawing with its title and its words for those who cannot see it.

    Args:
        title: what is shown.
        svg: one `<svg>` element, trusted markup.
        alt: what the figure says, in words.
        note: a remark below the figure.
        narrow_svg: the same drawing for a phone; empty means that `svg` serves every width.
    """

    title: str
    svg: str
    alt: str
    note: str = ""
    narrow_svg: str = ""


@dataclass(frozen=True)
class KeyValues:
    """Settings or an environment: names and values, folded away until asked for, open in print.

    Args:
        title: what these are.
        mapping: names to values; a mapping inside is flattened to dotted names.
    """

    title: str
    mapping: Mapping[str, Any]


@dataclass(frozen=True)
class Code:
    """A command or a snippet to copy.

    Args:
        text: copied as it stands.
    """

    text: str


@dataclass(frozen=True)
class Structures:
    """Molecules in 3-D, side by side, which a reader can turn with the mouse or a finger.

    Drawn as cartoons by 3Dmol.js where that package is installed when the page is made, and as
    C-alpha traces elsewhere; without scripts and in print, a still trace stands in their place.

    Args:
        title: what is shown.
        models: name -> text of a PDB file with C-alphas.
        alt: what is seen, in words.
        note: a remark below.

    Raises:
        UserError: if there is no model, or one has fewer than two C-alphas.
    """

    title: str
    models: Mapping[str, str]
    alt: str
    note: str = ""

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError(f"models of {self.title!r} must hold at least one, got none")
        for name, text in self.models.items():
            count = text.count(" CA ")
            if count < 2:
                raise UserError(f"model {name!r} must have at least two C-alphas, got {count}")


Part = Text | Verdict | Table | Figure | KeyValues | Code | Structures
"""What a section holds."""


@dataclass(frozen=True)
class Section:
    """Parts under one heading.

    Args:
        title: the heading.
        parts: shown in this order.
    """

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Args:
        title: the heading, and the title of the browser's window.
        subtitle: what was run, in one line.
        sections: shown in this order; more than three get a table of contents.
    """

    title: str
    subtitle: str
    sections: tuple[Section, ...]
