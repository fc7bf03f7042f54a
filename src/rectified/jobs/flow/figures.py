"""The figures of a report of flows: distance by steps, geometry, trajectories and images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rectified.report import Figure, Series, bars, lines
from rectified.report.drawing import COLOURS, Drawing, Sheet, figure
from rectified.statistics import Interval

_LEAST = 1e-12  # of a distance, so that its logarithm is finite


def curves(
    distances: Mapping[str, Mapping[int, Interval]], *, name: str, floor: float, between: str
) -> Figure:
    """Distance against steps.

    Args:
        distances: flow -> steps -> distance over seeds.
        name: of the distance.
        floor: the least that can be expected.
        between: what that is the distance of, in words.
    """
    return lines(
        [_curve(label, by_steps) for label, by_steps in distances.items()],
        title="Distance against steps",
        x_label="steps of the solver",
        y_label=f"log10 of {name}",
        alt="Distance from the data by number of steps, a line per flow and solver.",
        x_scale="log",
        note=f"Mean over seeds with 95 % intervals; {between}: {floor:.3g} "
        f"(log10 {_log(floor):.2f}).",
    )


def _curve(label: str, distances: Mapping[int, Interval]) -> Series:
    values = list(distances.values())
    x, y = [float(steps) for steps in distances], [_log(v.mean) for v in values]
    if math.isnan(values[0].half_width):
        return Series(label, x, y)
    low = [_log(max(v.low, 1e-2 * v.mean)) for v in values]
    return Series(label, x, y, low, [_log(v.high) for v in values])


def _log(value: float, least: float = _LEAST) -> float:
    return math.log10(max(value, least))


def bends(straightness: Mapping[str, float], gaps: Mapping[str, float]) -> Figure:
    """First order and straightness are not the same: on a curved path the first can come alone.

    Args:
        straightness: flow -> straightness over transport cost.
        gaps: flow -> first-order gap.
    """
    groups = {
        "straightness / cost": [_log(value, 1e-6) for value in straightness.values()],
        "first-order gap": [_log(value, 1e-6) for value in gaps.values()],
    }
    return bars(
        list(straightness),
        groups,
        title="Straight, or first-order",
        x_label="log10",
        alt="Straightness and first-order gap of every flow.",
        note="Reflow on a curved path makes a flow first-order (one natural Euler step is exact) "
        "without making it straight; on the straight path the two are the same.",
    )


def drawings(shown: Mapping[str, Any], steps: Sequence[int]) -> Iterator[Figure]:
    """Trajectories or images of every flow.

    Args:
        shown: arrays by the name of their flow, and `reference`: points of the data.
        steps: that images were made in.
    """
    for name, array in shown.items():
        values = np.asarray(array, dtype=np.float32)
        if name == "reference" or not values.size:
            continue
        if values.ndim == 3:
            yield _paths(name, values, np.asarray(shown["reference"], dtype=np.float32))
        elif values.ndim == 5:
            yield _grid(name, values, steps)


def _paths(name: str, states: np.ndarray, reference: np.ndarray) -> Figure:
    """Paths of points from the source to the target."""

    def draw(axes: Any, sheet: Sheet) -> list[Any]:
        count = states.shape[1] if sheet.width > 400 else states.shape[1] // 2
        real = axes.scatter(*reference.T[:2], s=3, color=COLOURS[5], alpha=0.35, linewidths=0)
        for i in range(count):
            axes.plot(*states[:, i].T, color=COLOURS[0], linewidth=0.6, alpha=0.5)
        start = axes.scatter(*states[0, :count].T, s=9, color=COLOURS[1], linewidths=0, zorder=3)
        end = axes.scatter(*states[-1, :count].T, s=9, color=COLOURS[2], linewidths=0, zorder=3)
        axes.set_aspect("equal", adjustable="datalim")
        return [start, end, real]

    drawing = Drawing(draw, ["source", "where they end", "data"], "first coordinate")
    return figure(
        drawing,
        lambda sheet: int(0.75 * sheet.width),
        title=f"Trajectories, {name}",
        alt=f"Paths of points from the source to the target under the {name}.",
        note="",
    )


def _grid(name: str, images: np.ndarray, steps: Sequence[int]) -> Figure:
    """The same source points in every number of steps."""

    def draw(axes: Any, sheet: Sheet) -> list[Any]:
        rows, height = len(images), images.shape[-2]
        axes.imshow(_mosaic(images), interpolation="nearest")
        axes.grid(visible=False)
        names = [f"{n} step{'s' * (n > 1)}" for n in steps]
        names = ["source", *names][-rows:]  # where the source is a picture too
        axes.set_yticks([r * (height + 1) + height / 2 for r in range(rows)], names)
        axes.set_xticks([])
        return []

    shape = images.shape[0] / images.shape[1]
    return figure(
        Drawing(draw, [], ""),
        lambda sheet: int(0.9 * sheet.width * shape),
        title=f"Samples, {name}",
        alt=f"Images from the same noise in every number of steps, {name}.",
        note="Each column begins at the same source point.",
    )


def _mosaic(images: np.ndarray) -> np.ndarray:
    """(rows, columns, channels, height, width) in [-1, 1] to one picture in [0, 1]."""
    rows, columns = images.shape[:2]
    height, width = images.shape[-2:]
    canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), np.float32)
    for r in range(rows):
        for c in range(columns):
            picture = np.clip(images[r, c] * 0.5 + 0.5, 0, 1).transpose(1, 2, 0)
            top, left = r * (height + 1), c * (width + 1)
            canvas[top : top + height, left : left + width] = picture  # grey broadcasts
    return canvas
