"""Numbers -> figures: lines with intervals, and bars.

Series differ in colours that stay apart for colour-blind eyes too and, as lines, in marker, so that
no reader has to tell them apart by colour alone. How a drawing becomes part of a page is in
`rectified.report.drawing`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import log, nan
from typing import TYPE_CHECKING, Any

from rectified.errors import UserError, choose
from rectified.report.drawing import COLOURS, PAPER, Drawing, Sheet, cut, figure
from rectified.report.page import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = Sequence[float | int | None]
"""Numbers, with `None` for a gap."""

_MINUS = "\N{MINUS SIGN}"
# Seven markers against six colours: no pair comes back before the 43rd series.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Series:
    """One line of a figure, with an optional interval around it.

    Args:
        label: its name in the legend.
        x: positions.
        y: a value per position; `None` leaves a gap.
        low: the lower end of the interval at each position.
        high: the upper end.

    Raises:
        UserError: if the lengths differ, or only one end of the interval is given.
    """

    label: str
    x: Sequence[float | int]
    y: Values
    low: Values | None = None
    high: Values | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise UserError(f"low and high of {self.label!r} must be given together")
        for name in ("y", "low", "high"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.x):
                raise UserError(
                    f"{name} of {self.label!r} must have {len(self.x)} values as x has, "
                    f"got {len(values)}"
                )


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    alt: str,
    x_scale: str = "linear",
    x_percent: bool = False,
    y_percent: bool = False,
    invert_x: bool = False,
    note: str = "",
) -> Figure:
    """Draw lines with markers, and a band where a series has an interval.

    A logarithmic axis is labelled at the points that the series have (as many as can be read), not
    at powers of ten. With `invert_x`, the axis runs from large to small: sparser is further right.

    Args:
        series: at least one.
        title: what is shown, above the figure.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical axis.
        alt: what the figure says, in words.
        x_scale: of the horizontal axis, linear or log.
        x_percent: whether x is a share in [0, 1], to be written in percent.
        y_percent: the same for y.
        invert_x: whether x falls from left to right.
        note: a remark below the figure.

    Raises:
        UserError: if there is no series, the scale is not known, or a logarithmic x is not
            positive.

    Example:
        >>> dense = Series("dense", x=[1.0, 0.5, 0.25], y=[0.97, 0.96, 0.93])
        >>> figure = lines([dense], title="Accuracy", x_label="density", y_label="accuracy",
        ...                alt="Accuracy falls.", x_scale="log", x_percent=True, invert_x=True)
        >>> figure.svg.startswith("<svg"), "25%" in figure.svg
        (True, True)
    """
    points = _check_points(series, x_scale)

    def draw(axes: "Axes", sheet: Sheet) -> Sequence[Any]:
        for one, colour, marker in zip(series, cycle(COLOURS), cycle(_MARKERS), strict=False):
            _draw_series(axes, one, colour, marker)
        axes.grid(visible=False, axis="x")
        _scale_x(axes, points, x_scale, x_percent, sheet)
        if y_percent:
            _write_percent(axes.yaxis)
        if invert_x:
            axes.invert_xaxis()
        return list(axes.lines)

    drawing = Drawing(draw, [one.label for one in series], x_label, y_label)
    return figure(drawing, lambda sheet: sheet.height, title=title, alt=alt, note=note)


def bars(
    labels: Sequence[str],
    groups: Mapping[str, Values],
    *,
    title: str,
    x_label: str,
    alt: str,
    x_percent: bool = False,
    note: str = "",
) -> Figure:
    """Draw horizontal bars, the groups side by side under each label, in the order given.

    Args:
        labels: what the bars are for, from the top down: the layers of a network.
        groups: name -> one value per label; `None` leaves a gap.
        title: what is shown, above the figure.
        x_label: name and unit of the values.
        alt: what the figure says, in words.
        x_percent: whether the values are shares in [0, 1], to be written in percent.
        note: a remark below the figure.

    Raises:
        UserError: if there is no label or no group, or a group has another length than `labels`.

    Example:
        >>> figure = bars(["conv1", "conv2"], {"before": [0.2, 0.4], "after": [0.1, 0.2]},
        ...               title="Dead neurons", x_label="dead", alt="Fewer.", x_percent=True)
        >>> "conv2" in figure.svg
        True
    """
    _check_groups(labels, groups)
    thickness = min(0.8 / len(groups), 0.5)
    row = max(22, 9 * len(groups) + 10)  # SVG units for the bars of one label

    def draw(axes: "Axes", sheet: Sheet) -> Sequence[Any]:
        for index, (values, colour) in enumerate(
            zip(groups.values(), cycle(COLOURS), strict=False)
        ):
            offset = (index - (len(groups) - 1) / 2) * thickness
            positions = [place + offset for place in range(len(labels))]
            axes.barh(positions, _numbers(values), 0.88 * thickness, color=colour)
        axes.set_yticks(range(len(labels)), [cut(label, sheet.label_length) for label in labels])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(_locator(sheet.ticks))
        if x_percent:
            _write_percent(axes.xaxis)
        return list(axes.containers)

    drawing = Drawing(draw, list(groups), x_label)
    return figure(drawing, lambda _: 40 + row * len(labels), title=title, alt=alt, note=note)


def _check_points(series: Sequence[Series], x_scale: str) -> list[float]:
    """All positions, each once."""
    choose("scale", x_scale, ["linear", "log"])
    if not series:
        raise UserError("series must hold at least one, got none")
    points = sorted({float(x) for one in series for x in one.x})
    if x_scale == "log" and points and points[0] <= 0:
        raise UserError(f"x must be positive on a log scale, got {points[0]:g}")
    return points


def _check_groups(labels: Sequence[str], groups: Mapping[str, Values]) -> None:
    if not labels or not groups:
        raise UserError(
            f"bars need a label and a group, got {len(labels)} labels and {len(groups)} groups"
        )
    for name, values in groups.items():
        if len(values) != len(labels):
            raise UserError(f"group {name!r} must have {len(labels)} values, got {len(values)}")


def _numbers(values: Values) -> list[float]:
    return [nan if value is None else float(value) for value in values]


def _draw_series(axes: "Axes", one: Series, colour: str, marker: str) -> None:
    if one.low is not None and one.high is not None:
        low, high = _numbers(one.low), _numbers(one.high)
        axes.fill_between(one.x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        one.x,
        _numbers(one.y),
        color=colour,
        marker=marker,
        linewidth=1.8,
        markersize=6,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
    )


def _scale_x(axes: "Axes", points: list[float], scale: str, percent: bool, sheet: Sheet) -> None:
    if scale == "log":
        axes.set_xscale("log")
        shown = _spaced(points, sheet.ticks)
        axes.set_xticks(shown, [_percent(x) if percent else f"{x:g}" for x in shown])
        axes.set_xticks([], minor=True)
        return
    whole = not percent and all(x.is_integer() for x in points)
    axes.xaxis.set_major_locator(_locator(sheet.ticks, integer=whole))
    if percent:
        _write_percent(axes.xaxis)


def _spaced(points: list[float], count: int) -> list[float]:
    """The points from the largest down, about `count` of them, no two near on a log scale."""
    if not points:
        return []
    # 0.999: a point that lies exactly one step away stays, whatever the rounding.
    step = 0.999 * log(points[-1] / points[0]) / count
    shown = points[-1:]
    for point in reversed(points):
        if log(shown[-1] / point) > step:
            shown.append(point)
    return shown


def _percent(share: float) -> str:
    """Two digits, and no more zeros than needed: 100%, 51%, 8.6%, 0.86%."""
    percent = 100 * share
    return f"{percent:.0f}%" if percent >= 10 else f"{percent:.2g}%"


def _write_percent(axis: Any) -> None:
    # Six digits: enough for any axis, and 100 * 0.07 is still written as 7.
    axis.set_major_formatter(lambda share, _: f"{100 * share:.6g}%".replace("-", _MINUS))


def _locator(count: int, *, integer: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=count, integer=integer, steps=[1, 2, 2.5, 5, 10])
