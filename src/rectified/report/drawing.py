"""One drawing on two sheets, as markup that lives inside a page.

Each drawing is made twice, for a desktop or paper and for a phone, since one that is merely scaled
down cannot be read. The page shows the one that fits. The SVG has no size of its own (a `viewBox`
only), no date and no style sheet, and its text stays text: it is set in the page's own font, can be
searched, and needs no font from anywhere.

Colours are not fixed either: matplotlib draws with the palette below, and each of its colours is
then replaced by the page's name for it (`#0b5fa5` becomes `var(--series-1, #0b5fa5)`, the colour of
text becomes `currentColor`), so that one drawing serves light, dark and print.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

from rectified.report.page import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# SVG units: a letter of the figures' text at its widest, and a line of it.
_LETTER = 7
_LINE = 15
_INK = "#1c1f24"
_QUIET = "#5a606b"
_RULE = "#dcdcd6"
PAPER = "#ffffff"
COLOURS = ("#0b5fa5", "#d4541a", "#0b8a66", "#8e3f86", "#6e5200", "#4d535e")
_NAMES = {
    _INK: "currentColor",
    _QUIET: f"var(--quiet, {_QUIET})",
    _RULE: f"var(--rule, {_RULE})",
    PAPER: f"var(--paper, {PAPER})",
    **{colour: f"var(--series-{i}, {colour})" for i, colour in enumerate(COLOURS, start=1)},
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rectified",
    "text.parse_math": False,  # a name may hold dollar signs
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _QUIET,
    "axes.titlecolor": _QUIET,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": _QUIET,
    "axes.spines.left": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "figure.constrained_layout.h_pad": 0.11,  # inches between the legend and the drawing
    "figure.constrained_layout.w_pad": 0.01,
    "legend.handlelength": 1.8,
}


@dataclass(frozen=True)
class Sheet:
    """The area to draw on, in SVG units (about pixels)."""

    width: int
    height: int
    ticks: int
    label_length: int


@dataclass(frozen=True)
class Drawing:
    """A drawing for either sheet: `draw` returns the marks for the legend; and the words."""

    draw: "Callable[[Axes, Sheet], Sequence[Any]]"
    names: Sequence[str]
    x_label: str
    y_label: str = ""


_DESKTOP = Sheet(width=720, height=330, ticks=12, label_length=36)
_PHONE = Sheet(width=310, height=220, ticks=5, label_length=16)


def figure(
    drawing: Drawing, height: Callable[[Sheet], int], *, title: str, alt: str, note: str
) -> Figure:
    """Draw on both sheets.

    Args:
        drawing: what to draw.
        height: of the marks alone, in SVG units; the words come on top.
        title: what is shown.
        alt: what the figure says, in words.
        note: a remark below the figure.
    """
    wide, narrow = (_svg(drawing, sheet, height(sheet)) for sheet in (_DESKTOP, _PHONE))
    return Figure(title, wide, alt, note, narrow)


def _legend_columns(names: Sequence[str], sheet: Sheet) -> int:
    """As many as fit, with 50 units for each key and gap."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    return max(1, min(sheet.width // (_LETTER * longest + 50), len(names)))


def _svg(drawing: Drawing, sheet: Sheet, height: int) -> str:
    """The markup of one drawing, `height` units high without its words.

    matplotlib's own settings come back afterwards.
    """
    from matplotlib import style
    from matplotlib.figure import Figure as Canvas

    names = [_wrapped(name, 2 * sheet.label_length) for name in drawing.names]
    columns = _legend_columns(names, sheet)
    x_label, y_label = (
        _wrapped(label, sheet.width // _LETTER) for label in (drawing.x_label, drawing.y_label)
    )
    height += _LINE * (_count_lines(*names) // columns + _count_lines(x_label, y_label))
    with style.context(["default", _STYLE]), StringIO() as file:
        canvas = Canvas(figsize=(sheet.width / 72, height / 72), layout="constrained")
        axes = canvas.subplots()
        axes.set_title(y_label)
        axes.set_xlabel(x_label)
        handles = drawing.draw(axes, sheet)
        if names:
            canvas.legend(handles, names, loc="outside upper left", ncols=columns, alignment="left")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(file, format="svg", transparent=True, metadata=nothing)
        return _inline(file.getvalue())


def _inline(svg: str) -> str:
    """Keep the element alone, without size, style sheet (it would rule the page) and fixed colours.

    Only tags are touched: a label that reads `width="3"` is none of our business.
    """
    svg = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    root, rest = svg.split(">", maxsplit=1)
    root = re.sub(r' (width|height|version)="[^"]*"', "", root)
    # What matplotlib's style sheet says of every element.
    root += ' style="stroke-linejoin: round; stroke-linecap: butt"'
    rest = re.sub(r"<[^>]+>", lambda tag: _name_colours(tag[0]), rest)
    return f"{root}>{rest}".strip()


def _name_colours(tag: str) -> str:
    return re.sub(r"#[0-9a-f]{6}\b", lambda colour: _NAMES.get(colour[0], colour[0]), tag)


def _printable(label: str) -> str:
    """Replace what XML cannot hold, so that no name can spoil a whole report."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in label)


def _count_lines(*texts: str) -> int:
    return sum(text.count("\n") + 1 for text in texts)


def _wrapped(label: str, length: int) -> str:
    return fill(_printable(label), length)


def cut(label: str, length: int) -> str:
    """The end of a long label: in `layer3.0.conv2.weight` the end tells most."""
    label = _printable(label)
    return label if len(label) <= length else f"\N{HORIZONTAL ELLIPSIS}{label[1 - length :]}"
