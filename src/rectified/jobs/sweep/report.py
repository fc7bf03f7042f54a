"""The report of a sweep: means at the end, curves, differences seed by seed, all means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rectified.jobs.job import Report, Results, Row
from rectified.jobs.sweep import rows as tables
from rectified.report import Figure, Part, Section, Series, Table, Text, Verdict, lines
from rectified.statistics import Interval, holm, paired

UNTOLD = ("seconds",)  # measured, but not what a sweep is for
MOST_SERIES, MOST_FIGURES, MOST_LINES, MOST_REASONS = 12, 4, 24, 5


@dataclass(frozen=True)
class _Merged:
    """The rows of a sweep, and which of their columns are what."""

    rows: Sequence[Row]
    grid: Sequence[str]

    @classmethod
    def of(cls, results: Results) -> _Merged:
        columns = dict.fromkeys(name for run in results.contents["runs"] for name in run)
        return cls(results.rows, [name for name in columns if name not in tables.AVERAGED])

    @cached_property
    def axis(self) -> str | None:
        return tables.axis(self.rows, self.grid)

    @cached_property
    def keys(self) -> list[str]:
        return tables.keys(self.rows, self.grid)

    @cached_property
    def measures(self) -> list[str]:
        return [name for name in tables.measures(self.rows, self.grid) if name not in UNTOLD]

    @property
    def drawn(self) -> list[str]:
        """The measures that are the first to be looked at."""
        return self.measures[:MOST_FIGURES]

    @cached_property
    def end(self) -> list[Row]:
        return tables.at_the_end(self.rows, self.axis)

    def varies(self, name: str) -> bool:
        return len({row.get(name) for row in self.rows}) > 1


def sections(results: Results) -> Iterator[Section]:
    """The parts of the report, for a page of its own or one over several runs."""
    merged = _Merged.of(results)
    yield Section("What was found", tuple(_findings(results, merged)), is_brief=True)
    if merged.rows:
        curves = tuple(_curves(merged))
        nothing = (Text(("Nothing was measured more than once in a run.",)),)
        yield Section("Along the way", curves or nothing)
        yield Section("Differences, seed by seed", tuple(_differences(merged)))
        about, means = merged.keys, merged.measures
        yield Section("All means", (_table("Means over seeds", results.summary, about, means),))


def _subtitle(results: Results) -> str:
    settings = results.settings
    return f"rectified {settings['of']} on {settings['data']}: {settings['grid']}"


REPORT = Report("Sweep report", _subtitle, sections)


def _findings(results: Results, merged: _Merged) -> Iterator[Part]:
    failed = results.contents["failed"]
    count, of = len(results.contents["runs"]), results.settings["of"]
    empty = "" if merged.rows else ", and found nothing to merge"
    yield Text((f"{count} runs of rectified {of} are merged here{empty}.",))
    if failed:
        reasons = "; ".join(f"{one['point']}: {one['message']}" for one in failed[:MOST_REASONS])
        yield Verdict(f"{len(failed)} runs failed", reasons, "warning")
    if merged.rows:
        summary = tables.summarise(merged.end, merged.grid)
        about = [name for name in merged.keys if merged.varies(name) or name == merged.axis]
        yield _table("At the end", summary[:MOST_LINES], about, merged.drawn, len(summary))


def _table(
    title: str,
    summary: Sequence[Row],
    about: Sequence[str],
    means: Sequence[str],
    count: int = 0,
) -> Table:
    heads = [*about, *(head for name in means for head in (name, f"± {name}")), "n"]
    cells = [
        (
            *(_cell(row[name]) for name in about),
            *(one for name in means for one in _spread(row[f"{name}_mean"], row[f"{name}_ci95"])),
            row["n"],
        )
        for row in summary
    ]
    cut = f" {count - len(summary)} more lines are in results.json." if count > len(summary) else ""
    note = f"± is half the width of the 95 % t-interval over seeds.{cut}"
    return Table(title, tuple(heads), cells, note=note)


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _spread(mean: float | None, half: float | None) -> tuple[float | None, float | None]:
    """Mean and half-width, without what rounding leaves of seeds that agree."""
    mean, half = _number(mean), _number(half)
    is_rounding = mean is not None and half is not None and half <= 1e-12 * abs(mean)
    return mean, 0.0 if is_rounding else half


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _curves(merged: _Merged) -> Iterator[Figure]:
    """Every measure along the axis, a line for each set of other keys."""
    along = merged.axis
    if along is None:
        return
    others = [name for name in merged.keys if name != along and merged.varies(name)]
    groups: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for row in merged.rows:
        line = groups.setdefault(tuple(row.get(name) for name in others), {})
        line.setdefault(row[along], []).append(row)
    shown = list(groups.items())[:MOST_SERIES]
    cut = f" The first {MOST_SERIES} of {len(groups)} lines." if len(groups) > MOST_SERIES else ""
    for name in merged.drawn:
        yield lines(
            [_series(name, _label(others, key) or name, line) for key, line in shown],
            title=f"{name} by {along}",
            x_label=along,
            y_label=name,
            alt=f"{name} by {along}, {len(shown)} lines.",
            note=f"Means over seeds with 95 % t-intervals.{cut}",
        )


def _label(names: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def _series(name: str, label: str, line: Mapping[int, Sequence[Row]]) -> Series:
    along = {place: tables.over_seeds(members, name) for place, members in sorted(line.items())}
    means = [_number(one.mean) for one in along.values()]
    if any(math.isnan(one.half_width) for one in along.values()):
        return Series(label, list(along), means)
    low, high = ([getattr(one, end) for one in along.values()] for end in ("low", "high"))
    return Series(label, list(along), means, low, high)


def _differences(merged: _Merged) -> Iterator[Part]:
    """For every setting of the grid: each value minus the first, paired by seed, else alike."""
    compared = [name for name in merged.grid if len({row.get(name) for row in merged.end}) > 1]
    if not compared or any("seed" not in row for row in merged.end):
        yield Text(("The grid has no two values of a setting to compare seed by seed.",))
        return
    for setting in compared:
        for measure in merged.drawn:
            yield _comparison(merged, setting, measure)
    yield Text(
        (
            "Each value of a setting minus its first value, at the end of the runs, all other "
            "settings alike. p-values are corrected for the number of lines in their table (Holm).",
        )
    )


def _comparison(merged: _Merged, setting: str, measure: str) -> Table:
    compared = list(_compared(merged, setting, measure))
    corrected = holm([one.p for *_, one in compared])
    cells = [
        (words, where, _number(one.mean), _number(one.half_width), _number(p), one.n)
        for (where, words, one), p in zip(compared, corrected, strict=True)
    ]
    columns = (setting, "where", measure, "± 95 %", "p (Holm)", "seeds")
    return Table(f"{measure} by {setting}", columns, cells)


def _compared(merged: _Merged, setting: str, measure: str) -> Iterator[tuple[str, str, Interval]]:
    """The context, what is compared, and the difference, for all other values of a setting."""
    rows = merged.end
    first, *others = dict.fromkeys(row.get(setting) for row in rows)
    rest = [name for name in merged.keys if name != setting]
    told = [name for name in rest if len({row.get(name) for row in rows}) > 1]
    usable = [row for row in rows if row.get(measure) is not None]
    for context in dict.fromkeys(tuple(row.get(name) for name in rest) for row in rows):
        alike = dict(zip(rest, context, strict=True))
        where = _label(told, [alike[name] for name in told])
        base = _has({**alike, setting: first})
        for other in others:
            arm = _has({**alike, setting: other})
            yield where, f"{other} minus {first}", paired(usable, measure, arm, base)


def _has(values: Row) -> Callable[[Row], bool]:
    return lambda row: all(row.get(name) == value for name, value in values.items())
