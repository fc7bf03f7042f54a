"""The rows of many runs -> one table, and means over seeds with intervals.

Nothing here knows a verb. In the rows of any of them, a *measure* is a column of floating-point
numbers, and the others (and the grid's settings) are *keys* that say what was measured; seeds are
what is averaged over. The *axis* is the whole-numbered key with most values that the grid did not
set: cycles, epochs, steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rectified.statistics import Interval, interval

AVERAGED = ("seed", "run")  # columns that are no part of what a row is about

Row = Mapping[str, Any]


def merged(found: Sequence[tuple[str, Row, Sequence[Row]]]) -> list[dict[str, Any]]:
    """The rows of all runs; each says which run it is of, and where in the grid that lies.

    Args:
        found: identity, point and rows of every run.

    Example:
        >>> merged([("a1", {"rate": 0.1}, [{"seed": 0, "loss": 2.0}])])
        [{'run': 'a1', 'rate': 0.1, 'seed': 0, 'loss': 2.0}]
    """
    return [{"run": run, **_plain(point), **row} for run, point, rows in found for row in rows]


def _plain(point: Row) -> dict[str, Any]:
    return {k: "+".join(map(str, v)) if isinstance(v, tuple) else v for k, v in point.items()}


def measures(rows: Sequence[Row], grid: Sequence[str]) -> list[str]:
    """The columns with numbers that were measured, in their order.

    Example:
        >>> measures([{"seed": 1, "rate": 0.1, "cycle": 2, "loss": 0.5}], ["rate"])
        ['loss']
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    return [
        name
        for name in columns
        if name not in (*AVERAGED, *grid) and any(type(row.get(name)) is float for row in rows)
    ]


def keys(rows: Sequence[Row], grid: Sequence[str]) -> list[str]:
    """The columns that say what a row is about: the grid's settings first.

    Example:
        >>> keys([{"seed": 1, "rate": 0.1, "cycle": 2, "loss": 0.5}], ["rate", "seed"])
        ['rate', 'cycle']
    """
    measured = measures(rows, grid)
    columns = dict.fromkeys([*grid, *(name for row in rows for name in row)])
    return [
        name
        for name in columns
        if name not in (*AVERAGED, *measured)
        and all(isinstance(row.get(name), str | int | float | None) for row in rows)
    ]


def summarise(rows: Sequence[Row], grid: Sequence[str]) -> list[dict[str, Any]]:
    """Means over seeds with half-widths of their 95 % intervals, a line for each set of keys."""
    about, measured = keys(rows, grid), measures(rows, grid)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in about), []).append(row)
    return [
        {**dict(zip(about, key, strict=True)), **_means(members, measured), "n": len(members)}
        for key, members in groups.items()
    ]


def _means(members: Sequence[Row], measured: Sequence[str]) -> dict[str, float]:
    means: dict[str, float] = {}
    for name in measured:
        found = over_seeds(members, name)
        means |= {f"{name}_mean": found.mean, f"{name}_ci95": found.half_width}
    return means


def over_seeds(members: Sequence[Row], name: str) -> Interval:
    """The mean of a column over the rows that have a number there."""
    values = (row.get(name) for row in members)
    return interval(float(v) for v in values if v is not None and not math.isnan(v))


def axis(rows: Sequence[Row], grid: Sequence[str]) -> str | None:
    """The whole-numbered key with most values, if any has more than one.

    Example:
        >>> axis([{"cycle": 0, "bits": 1}, {"cycle": 1, "bits": 1}], [])
        'cycle'
    """
    found = None
    most = 1
    for name in keys(rows, grid):
        values = {row.get(name) for row in rows}
        if name not in grid and all(type(v) is int for v in values) and len(values) > most:
            found, most = name, len(values)
    return found


def at_the_end(rows: Sequence[Row], along: str | None) -> list[Row]:
    """The rows at the end of the axis."""
    if along is None or not rows:
        return list(rows)
    end = max(row[along] for row in rows)
    return [row for row in rows if row[along] == end]
