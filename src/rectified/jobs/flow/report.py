"""The report of `rectified flow` and `rectified diffusion`, as parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rectified.jobs.flow import figures
from rectified.jobs.flow.comparisons import (
    RATIO,
    Arm,
    all_steps,
    arms,
    of_arm,
    plain_solver,
    verdicts,
)
from rectified.jobs.job import Results
from rectified.report import Column, Section, Table, Text
from rectified.report import Verdict as Card
from rectified.report.page import EN_DASH
from rectified.statistics import Interval, interval

Row = Mapping[str, Any]
Line = tuple[Arm, str]  # a flow and a solver

NAMES = {
    "w2": "W2 (exact)",
    "frechet": "Fréchet distance",
    "teacher": "squared distance from the teacher's own samples, relative",
}
_FLOORS = {"teacher": "the teacher in twice the steps"}
_TONES = {"gain": "gain", "loss": "loss", "no evidence": "neutral"}
FIRST_ORDER = 0.02  # gap below which one step does what many do


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Distance over seeds for every recipe, round, solver and number of steps.

    Example:
        >>> row = dict(recipe="2rf", round=2, solver="euler", steps=1, distance=1.0, seed=0)
        >>> summarise([row, {**row, "seed": 1}])[0]["distance_mean"]
        1.0
    """
    return [
        {
            "recipe": recipe,
            "round": number,
            "steps": steps,
            "distance_mean": distance.mean,
            "distance_ci95": distance.half_width,
            "n": distance.n,
            "solver": solver,
        }
        for (recipe, number, solver, steps), distance in _by_point(rows).items()
    ]


def _by_point(rows: Sequence[Row]) -> dict[tuple[str, int, str, int], Interval]:
    values: dict[tuple[str, int, str, int], list[float | None]] = {}
    for row in rows:
        key = (row["recipe"], row["round"], row["solver"], row["steps"])
        values.setdefault(key, []).append(row["distance"])
    return {key: interval(distances) for key, distances in values.items()}


def named(recipe: str, number: int) -> str:
    """A flow in words."""
    if number > 1:
        return f"{recipe}, round {number}"
    return "first flow" if recipe == "1rf" else f"{recipe} model"


# --- what was found ---


def subtitle(results: Results) -> str:
    """Source, data and seeds, in one line."""
    settings = results.settings
    count = len(_seeds(results))
    source = settings.get("source", "gaussian")
    data = settings.get("pipeline") or settings["data"]
    return f"{source} to {data}, {count} seed{'s' * (count != 1)}"


def sections(results: Results) -> Iterator[Section]:
    """The parts of the report."""
    yield Section("What was found", tuple(summary(results)), is_brief=True)
    yield Section("Distance by steps", (_curves(results),))
    drawn = tuple(figures.drawings(results.details["shown"], results.settings["steps"]))
    if drawn:
        yield Section("What it looks like", drawn)
    parts = (_protocol(results), _geometry(results), _bends(results), _distances(results))
    yield Section("Every flow", parts)
    if any("pairs" in note for note in _notes(results)):
        yield Section("The pairs that reflow was trained on", (_pairs(results),))


def summary(results: Results) -> Iterator[Table | Card]:
    """Distances, a card for every flow and comparison, and what is doubtful."""
    yield _few_steps(results)
    for arm in arms(results.rows):
        yield Card(_label(arm, plain_solver(results.rows, arm)), _in_words(results, arm))
    judged = results.verdicts or [asdict(one) for one in verdicts(results.rows)]
    for verdict in judged:
        yield _compared(verdict, len(judged))
    for words in results.contents["warnings"]:
        yield Card("Mind this", words, "warning")


def _notes(results: Results) -> Iterable[Row]:
    return results.contents["notes"].values()


def _seeds(results: Results) -> list[int]:
    return sorted({row["seed"] for row in results.rows})


def _label(arm: Arm, solver: str) -> str:
    return f"{named(*arm)} ({solver})"


def _spread(value: Interval) -> str:
    if math.isnan(value.mean):
        return EN_DASH
    half = "" if math.isnan(value.half_width) else f" ± {value.half_width:.3g}"
    return f"{value.mean:.3g}{half}"


def _lines(rows: Sequence[Row]) -> list[Line]:
    return list(dict.fromkeys(((r["recipe"], r["round"]), r["solver"]) for r in rows))


def _by_steps(rows: Sequence[Row]) -> dict[Line, dict[int, Interval]]:
    """Distance over seeds of every flow and solver, by ascending numbers of steps."""
    distances = _by_point(rows)
    return {
        (arm, solver): {
            steps: distances[*arm, solver, steps]
            for steps in all_steps(rows)
            if (*arm, solver, steps) in distances
        }
        for arm, solver in _lines(rows)
    }


def _distance_name(rows: Sequence[Row]) -> str:
    return str(NAMES.get(rows[0]["distance_name"], rows[0]["distance_name"]))


def _floor(results: Results) -> tuple[float, str]:
    """The least distance that can be expected, and what it is between."""
    least = interval(note["floor"] for note in _notes(results)).mean
    return least, _FLOORS.get(results.rows[0]["distance_name"], "real against real")


def _few_steps(results: Results) -> Table:
    """Distances, a column for every number of steps."""
    steps = all_steps(results.rows)
    floor, between = _floor(results)
    rows = [
        (_label(arm, solver), *(_spread(own[n]) if n in own else None for n in steps))
        for (arm, solver), own in _by_steps(results.rows).items()
    ]
    return Table(
        f"{_distance_name(results.rows)} by number of steps",
        ("flow", *(f"{n} step{'s' * (n > 1)}" for n in steps)),
        rows,
        note=f"Mean ± 95 % over seeds; {between}: {floor:.3g}.",
    )


def _in_words(results: Results, arm: Arm) -> str:
    """A flow in few and in many steps, and its geometry."""
    rows = of_arm(results.rows, arm)
    steps, distances = all_steps(results.rows), _by_steps(results.rows)
    few, many = min(steps), max(steps)
    own = distances[arm, plain_solver(rows, arm)]
    bend = _noted(results, arm, "straightness_relative")
    gap = _noted(results, arm, "first_order_gap")
    return (
        f"{_spread(own[few])} in {few} step{'s' * (few > 1)}, {_spread(own[many])} in {many}; "
        f"straightness / cost {_spread(bend)}, first-order gap {_spread(gap)}; "
        f"transport cost {_spread(_of_rows(rows, 'transport_cost'))}"
    )


def _noted(results: Results, arm: Arm, name: str) -> Interval:
    """A note's mean over seeds."""
    return interval(
        note[name]
        for note in _notes(results)
        if (note["recipe"], note["round"]) == arm and name in note
    )


def _of_rows(rows: Sequence[Row], name: str) -> Interval:
    """The mean over seeds of a quantity that is the same in every row of one seed."""
    return interval({row["seed"]: row[name] for row in rows}.values())


def _compared(verdict: Row, count: int) -> Card:
    """A comparison as a card."""
    low, high = verdict["low"], verdict["high"]
    difference = math.nan if verdict["difference"] is None else verdict["difference"]
    half = "" if high is None else f" ± {(high - low) / 2:.3g}"
    seeds = f"{verdict['n']} seed{'s' * (verdict['n'] != 1)}, paired"
    size = (
        f"{1 + difference:.3g}{half} of its distance"
        if verdict["quantity"] == RATIO
        else f"{difference:+.3g}{half}"
    )
    title = f"{verdict['subject']} against {verdict['base']}"
    return Card(title, f"{size} ({seeds}); {_evidence(verdict, count)}", _TONES[verdict["outcome"]])


def _evidence(verdict: Row, count: int) -> str:
    if verdict["p"] is None:
        return "one seed says nothing about others"
    words = {"gain": "nearer", "loss": "farther", "no evidence": "not told apart"}
    return f"{words[verdict['outcome']]}, p = {verdict['p']:.2g}, corrected for {count} comparisons"


def _curves(results: Results) -> Any:
    floor, between = _floor(results)
    distances = {_label(arm, solver): own for (arm, solver), own in _by_steps(results.rows).items()}
    name = _distance_name(results.rows)
    return figures.curves(distances, name=name, floor=floor, between=between)


# --- every flow ---


def _protocol(results: Results) -> Text:
    note = next(iter(_notes(results)))
    seeds = ", ".join(map(str, _seeds(results)))
    return Text((f"Protocol: {note['protocol']}; seeds {seeds}.",))


def _geometry(results: Results) -> Table:
    rows: list[tuple[Any, ...]] = []
    for arm in arms(results.rows):
        own = of_arm(results.rows, arm)
        measured = (
            _of_rows(own, "straightness"),
            _noted(results, arm, "straightness_relative"),
            _noted(results, arm, "first_order_gap"),
            _of_rows(own, "transport_cost"),
            _noted(results, arm, "terminal_gain"),
        )
        rows.append((named(*arm), *(one.mean for one in measured)))
    columns = ("straightness S", "S / cost", "first-order gap", "transport cost", "terminal gain")
    return Table(
        "Geometry, means over seeds",
        ("flow", *(Column(name, better="lower") for name in columns)),
        rows,
        note="S is summed over dimensions, on 100 steps. A first-order gap below "
        f"{FIRST_ORDER:g} means that one step does what many do. The terminal gain is what an "
        f"error of the prediction is multiplied by in the first step.{_costs(results)}",
    )


def _costs(results: Results) -> str:
    first = [note for note in _notes(results) if "optimal_cost" in note]
    if not first:
        return ""
    least = interval(note["optimal_cost"] for note in first).mean
    alone = interval(note["independent_cost"] for note in first).mean
    return (
        f" Between source and data the least transport cost is {least:.3g}, that of independent "
        f"pairs {alone:.3g}."
    )


def _bends(results: Results) -> Any:
    straightness, gaps = (
        {named(*arm): _noted(results, arm, name).mean for arm in arms(results.rows)}
        for name in ("straightness_relative", "first_order_gap")
    )
    return figures.bends(straightness, gaps)


def _distances(results: Results) -> Table:
    evaluations = {
        (row["recipe"], row["round"], row["solver"], row["steps"]): row["evaluations"]
        for row in results.rows
    }
    rows = [
        (_label((recipe, number), solver), steps, evaluations[key], one.mean, one.half_width, one.n)
        for key, one in _by_point(results.rows).items()
        for recipe, number, solver, steps in [key]
    ]
    columns = (Column("distance", better="lower"), Column("± 95 %"))
    return Table("Distances", ("flow", "steps", "evaluations", *columns, "seeds"), rows)


_PAIRS = {  # column -> name of the note
    "pairs": "pairs",
    "distance to data": "pairs_distance",
    "largest mean of x0": "source_mean",
    "deviation of x0": "source_deviation",
    "duplicates": "duplicates",
    "x0 is the source": "oriented",
    "loss": "loss",
    "held-out loss": "held_out_loss",
}
_ORIENTED = {True: "yes", False: "NO", None: "cannot be told"}


def _pairs(results: Results) -> Table:
    rows = []
    for name, note in results.contents["notes"].items():
        if "pairs" in note:
            shown = {**note, "oriented": _ORIENTED[note["oriented"]]}
            rows.append((name, *(shown[key] for key in _PAIRS.values())))
    return Table(
        "Pairs and what was learnt of them",
        ("flow", *_PAIRS),
        rows,
        note="A held-out loss far above the loss means too few pairs; a distance to the data far "
        "above that of the flow in many steps, too poor ones.",
    )
