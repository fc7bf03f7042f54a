"""The rows of many runs -> one table, means over seeds with intervals, and a page.

Nothing here knows a verb. In the rows of any of them, a *measure* is a column of floating-point
numbers, and the others (and the grid's settings) are *keys* that say what was measured; seeds are
what is averaged over. The *axis* is the whole-numbered key with most values that the grid did not
set: cycles, epochs, steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rectified.report import (
    Code,
    Figure,
    KeyValues,
    Page,
    Part,
    Section,
    Series,
    Table,
    Text,
    Verdict,
    lines,
    render,
)
from rectified.statistics import Interval, holm, interval, paired

AVERAGED = ("seed", "run")  # columns that are no part of what a row is about
UNTOLD = ("seconds",)  # measured, but not what a sweep is for
MOST_SERIES, MOST_FIGURES, MOST_LINES = 12, 4, 24

Row = Mapping[str, Any]
Results = Mapping[str, Any]


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
        found = _interval(members, name)
        means |= {f"{name}_mean": found.mean, f"{name}_ci95": found.half_width}
    return means


def _interval(members: Sequence[Row], name: str) -> Interval:
    """Over the rows that have a number there."""
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


def _told(rows: Sequence[Row], grid: Sequence[str]) -> list[str]:
    return [name for name in measures(rows, grid) if name not in UNTOLD][:MOST_FIGURES]


def _last(rows: Sequence[Row], along: str | None) -> list[Row]:
    """The rows at the end of the axis."""
    if along is None or not rows:
        return list(rows)
    end = max(row[along] for row in rows)
    return [row for row in rows if row[along] == end]


def text(results: Results) -> str:
    """A short table for the terminal: the means at the end of the axis."""
    rows, grid = results["rows"], _grid(results)
    if not rows:
        return f"{len(results['runs'])} runs, which found nothing to merge"
    along, told = axis(rows, grid), _told(rows, grid)
    about = [name for name in keys(rows, grid) if _varies(rows, name) or name == along]
    chosen = summarise(_last(rows, along), grid)
    table = [[*about, *told, "n"]]
    for row in chosen[:MOST_LINES]:
        means = [_spread(row[f"{name}_mean"], row[f"{name}_ci95"]) for name in told]
        table.append([*(str(row[name]) for name in about), *means, str(row["n"])])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    told_lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    more = len(chosen) - MOST_LINES
    told_lines += [f"... and {more} more in results.json"] if more > 0 else []
    return "\n".join([f"{len(results['runs'])} runs", *told_lines])


def _grid(results: Results) -> list[str]:
    return list(dict.fromkeys(k for run in results["runs"] for k in run if k not in AVERAGED))


def _varies(rows: Sequence[Row], name: str) -> bool:
    return len({row.get(name) for row in rows}) > 1


def _spread(mean: float, half: float) -> str:
    tiny = half is None or math.isnan(half) or half <= 1e-12 * abs(mean)  # as rounding leaves it
    return f"{mean:.4g}" + ("" if tiny else f" ± {half:.2g}")


def page(results: Results) -> str:
    """The report as one HTML page."""
    config = results["config"]
    subtitle = f"rectified {config['of']} on {config['data']}: {config['grid']}"
    return render(Page("Sweep report", subtitle, sections(results)))


def sections(results: Results) -> tuple[Section, ...]:
    """The parts of the report, for a page of its own or one over several runs."""
    rows = results["rows"]
    found = [Section("What was found", tuple(_findings(results)))]
    if rows:
        found += [
            Section("Along the way", tuple(_curves(results)) or (_nothing(),)),
            Section("Differences, seed by seed", tuple(_differences(results))),
            Section("All means", (_summary(results),)),
        ]
    return (*found, Section("How this was made", tuple(_origin(results))))


def _nothing() -> Text:
    return Text(("Nothing was measured more than once in a run.",))


def _findings(results: Results) -> Iterator[Part]:
    failed = results["failed"]
    count = len(results["runs"])
    yield Text((f"{count} runs of rectified {results['config']['of']} are merged here.",))
    if failed:
        reasons = "; ".join(f"{one['point']}: {one['message']}" for one in failed[:5])
        yield Verdict(f"{len(failed)} runs failed", reasons, "warning")
    rows, grid = results["rows"], _grid(results)
    if rows:
        yield _table("At the end", summarise(_last(rows, axis(rows, grid)), grid), results)


def _summary(results: Results) -> Table:
    return _table("Means over seeds", results["summary"], results)


def _table(title: str, summary: Sequence[Row], results: Results) -> Table:
    rows, grid = results["rows"], _grid(results)
    columns: list[str] = keys(rows, grid)
    means = [name for name in measures(rows, grid) if name not in UNTOLD]
    heads = [*columns, *(head for name in means for head in (name, f"± {name}")), "n"]
    cells = [
        (
            *(_cell(row[name]) for name in columns),
            *(_number(row[f"{n}_{kind}"]) for n in means for kind in ("mean", "ci95")),
            row["n"],
        )
        for row in summary
    ]
    note = "± is half the width of the 95 % t-interval over seeds."
    return Table(title, tuple(heads), cells, note=note)


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _curves(results: Results) -> Iterator[Figure]:
    """Every measure along the axis, a line for each set of other keys."""
    rows, grid = results["rows"], _grid(results)
    along = axis(rows, grid)
    if along is None:
        return
    others = [name for name in keys(rows, grid) if name != along and _varies(rows, name)]
    groups: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for row in rows:
        line = groups.setdefault(tuple(row.get(name) for name in others), {})
        line.setdefault(row[along], []).append(row)
    shown = list(groups.items())[:MOST_SERIES]
    cut = f" The first {MOST_SERIES} of {len(groups)} lines." if len(groups) > MOST_SERIES else ""
    for name in _told(rows, grid):
        series = [_series(key, others, line, name) for key, line in shown]
        yield lines(
            series,
            title=f"{name} by {along}",
            x_label=along,
            y_label=name,
            alt=f"{name} by {along}, {len(series)} lines.",
            note=f"Means over seeds with 95 % t-intervals.{cut}",
        )


def _series(
    key: Sequence[Any], others: Sequence[str], line: Mapping[int, Sequence[Row]], name: str
) -> Series:
    found = {place: _interval(members, name) for place, members in sorted(line.items())}
    label = ", ".join(f"{k} {v}" for k, v in zip(others, key, strict=True)) or name
    means = [_number(one.mean) for one in found.values()]
    if any(math.isnan(one.half_width) for one in found.values()):
        return Series(label, list(found), means)
    low = [one.low for one in found.values()]
    return Series(label, list(found), means, low, [one.high for one in found.values()])


def _differences(results: Results) -> Iterator[Part]:
    """For every setting of the grid: each value minus the first, paired by seed, else alike."""
    all_rows, grid = results["rows"], _grid(results)
    rows = _last(all_rows, axis(all_rows, grid))
    compared = [name for name in grid if _varies(rows, name)]
    if not compared or any("seed" not in row for row in rows):
        yield Text(("The grid has no two values of a setting to compare seed by seed.",))
        return
    for setting in compared:
        for measure in _told(rows, grid):
            yield _comparison(rows, keys(rows, grid), setting, measure)
    yield Text(
        (
            "Each value of a setting minus its first value, at the end of the runs, all other "
            "settings alike. p-values are corrected for the number of lines in their table (Holm).",
        )
    )


def _comparison(rows: Sequence[Row], about: Sequence[str], setting: str, measure: str) -> Table:
    first, *others = dict.fromkeys(row.get(setting) for row in rows)
    rest = [name for name in about if name != setting]
    contexts = dict.fromkeys(tuple(row.get(name) for name in rest) for row in rows)
    usable = [row for row in rows if row.get(measure) is not None]
    found = []
    for context in contexts:
        for other in others:
            difference = paired(
                usable,
                measure,
                _is(setting, other, rest, context),
                _is(setting, first, rest, context),
            )
            where = ", ".join(
                f"{n} {v}" for n, v in zip(rest, context, strict=True) if _varies(rows, n)
            )
            found.append((where, f"{other} minus {first}", difference))
    corrected = holm([one.p for *_, one in found])
    table = [
        (words, where, _number(one.mean), _number(one.half_width), _number(p), one.n)
        for (where, words, one), p in zip(found, corrected, strict=True)
    ]
    columns = (setting, "where", measure, "± 95 %", "p (Holm)", "seeds")
    return Table(f"{measure} by {setting}", columns, table)


def _is(setting: str, value: Any, rest: Sequence[str], context: Sequence[Any]) -> Any:
    def holds(row: Row) -> bool:
        return row.get(setting) == value and all(
            row.get(name) == there for name, there in zip(rest, context, strict=True)
        )

    return holds


def _origin(results: Results) -> Iterator[Part]:
    command = results["environment"].get("command")
    if command:
        yield Code(command)
    for one in ("config", "environment"):
        yield KeyValues({"config": "Settings"}.get(one, "Environment"), results[one])
