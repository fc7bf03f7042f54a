"""The parts that a page is made of: plain frozen data, with no idea of how it will look.

Every string here is *text*: `render` escapes it, whatever it holds. The one exception is the markup
of a `Figure`, which is inserted as it stands and so must come from a trusted maker, such as
`rectified.report.plots`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from rectified.errors import UserError, choose

Cell = str | float | int | None
"""One value of a table; `None` means that there is none, and is shown as an en dash."""

EN_DASH = "\N{EN DASH}"

TONES = ("gain", "loss", "neutral", "warning")
"""How a verdict may be taken."""


@dataclass(frozen=True)
class Text:
    """Paragraphs of running text.

    Args:
        paragraphs: one string per paragraph.
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
class Column:
    """A column of a table, and how its numbers are written.

    Args:
        name: the head.
        unit: `%` for shares, held in [0, 1] and shown times 100; `points` for differences of
            shares, shown times 100 with their sign; any other unit stands in the head.
        better: which way is better, if one is.
        digits: behind the point; None: whole numbers as they are, others with four digits in all.

    Example:
        >>> Column("accuracy", "%", "higher", 2).written(0.97531)
        '97.53%'
        >>> Column("effect", "points", digits=2).written(-0.012), Column("n").written(16)
        ('-1.20', '16')
    """

    name: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    digits: int | None = None

    @property
    def head(self) -> str:
        """Name and unit; that of shares stands in every cell."""
        return f"{self.name}, {self.unit}" if self.unit not in ("", "%") else self.name

    def written(self, value: Cell) -> str:
        """A cell as text; an en dash where there is no value, or an undefined number."""
        if value is None or value != value:
            return EN_DASH
        if isinstance(value, str | bool):
            return str(value)
        if self.unit in ("%", "points"):
            sign, end = ("", "%") if self.unit == "%" else ("+", "")
            return f"{100 * value:{sign}.{2 if self.digits is None else self.digits}f}{end}"
        if self.digits is not None:
            return f"{value:,.{self.digits}f}"
        return str(value) if isinstance(value, int) else f"{value:.4g}"


@dataclass(frozen=True, init=False)
class Table:
    """Rows under named columns, which a reader can sort. The first column names the row.

    Args:
        title: the caption.
        columns: what stands in them; a text is a column of that name.
        rows: as many values per row as there are columns.
        note: a remark below the table.

    Raises:
        UserError: if a row has another length than `columns`.

    Example:
        >>> rows = [("dense", 0.971), ("pruned", None)]
        >>> table = Table("Arms", ("arm", Column("accuracy", "%")), rows)
        >>> [column.written(value) for column, value in zip(table.columns, table.rows[0])]
        ['dense', '97.10%']
    """

    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __init__(
        self,
        title: str,
        columns: Sequence[Column | str],
        rows: Sequence[Sequence[Cell]],
        note: str = "",
    ) -> None:
        typed = tuple(Column(one) if isinstance(one, str) else one for one in columns)
        for row in rows:
            if len(row) != len(typed):
                raise UserError(
                    f"each row of {title!r} must have {len(typed)} values, got {len(row)}"
                )
        vars(self).update(title=title, columns=typed, rows=rows, note=note)  # it is frozen

    def is_numeric(self, index: int) -> bool:
        """Whether a column holds numbers, and nothing else but gaps."""
        column = [row[index] for row in self.rows]
        return any(map(is_number, column)) and all(v is None or is_number(v) for v in column)


def is_number(value: object) -> bool:
    """Whether a cell is a number, which a truth value is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


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
"""The parts of a section."""


@dataclass(frozen=True)
class Section:
    """Parts under one heading.

    Args:
        title: the heading.
        parts: shown in this order.
        is_brief: whether the terminal shows it, too.
    """

    title: str
    parts: tuple[Part, ...]
    is_brief: bool = False


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
