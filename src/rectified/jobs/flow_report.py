"""What `rectified flow` and `rectified diffusion` say: a page, and lines for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

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
    bars,
    lines,
    render,
)
from rectified.report.drawing import COLOURS, Drawing, Sheet, figure
from rectified.statistics import Interval, interval, paired

Results = Mapping[str, Any]
Row = Mapping[str, Any]
Point = tuple[str, int, str, int]  # recipe, round, solver, steps

NAMES = {
    "w2": "W2 (exact)",
    "frechet": "Fréchet distance",
    "teacher": "squared distance from the teacher's own samples, relative",
}
_FLOORS = {"teacher": "the teacher in twice the steps"}
_RIVALS: tuple[tuple[str, str, tuple[int, ...]], ...] = (  # ours, theirs, at which steps
    ("2rf++", "2rf", ()),
    ("rd", "2rf", ()),
    ("phased", "rd", (1, 2, 4, 8)),
)
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
            "distance_mean": found.mean,
            "distance_ci95": found.half_width,
            "n": found.n,
            "solver": solver,
        }
        for (recipe, number, solver, steps), found in _points(rows, "distance").items()
    ]


def _points(rows: Sequence[Row], quantity: str) -> dict[Point, Interval]:
    values: dict[Point, list[float]] = {}
    for row in rows:
        key = (row["recipe"], row["round"], row["solver"], row["steps"])
        values.setdefault(key, []).append(_number(row[quantity]))
    return {key: interval(found) for key, found in values.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _spread(found: Interval, digits: int = 3) -> str:
    half = "" if math.isnan(found.half_width) else f" ± {found.half_width:.{digits}g}"
    return f"{found.mean:.{digits}g}{half}"


def arms(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Recipes and rounds, in the order of the work."""
    return list(dict.fromkeys((row["recipe"], row["round"]) for row in rows))


def text(results: Results) -> str:
    """A table for the terminal: distance by steps of every flow, then what else was found."""
    rows = results["rows"]
    name = NAMES.get(rows[0]["distance_name"], rows[0]["distance_name"])
    floor = interval(note["floor"] for note in results["notes"].values())
    said = [f"{name} by number of steps, mean ± 95 % over seeds; {_floor(rows)} {floor.mean:.3g}"]
    said.append("")
    for (recipe, number), solver in _lines(rows):
        found = _points(rows, "distance")
        cells = [
            f"{steps}: {_spread(found[(recipe, number, solver, steps)])}"
            for steps in _steps(rows)
            if (recipe, number, solver, steps) in found
        ]
        said.append(f"{_label(recipe, number, solver):<34}" + "   ".join(cells))
    said.append("")
    for title, words in findings(results):
        said.append(f"{title}: {words}")
    said += [f"mind: {words}" for words in results["warnings"]]
    return "\n".join(said)


def _floor(rows: Sequence[Row]) -> str:
    """What the least distance that can be expected is between."""
    return _FLOORS.get(rows[0]["distance_name"], "real against real")


def _steps(rows: Sequence[Row]) -> list[int]:
    return sorted({row["steps"] for row in rows})


def _lines(rows: Sequence[Row]) -> list[tuple[tuple[str, int], str]]:
    return list(dict.fromkeys(((r["recipe"], r["round"]), r["solver"]) for r in rows))


def _label(recipe: str, number: int, solver: str) -> str:
    return f"{named(recipe, number)} ({solver})"


def named(recipe: str, number: int) -> str:
    """A flow in words."""
    if number > 1:
        return f"{recipe}, round {number}"
    return "first flow" if recipe == "1rf" else f"{recipe} model"


def findings(results: Results) -> Iterator[tuple[str, str]]:
    """What was found, each as a title and a sentence with its figures."""
    rows, notes = results["rows"], results["notes"]
    few, many = min(_steps(rows)), max(_steps(rows))
    points = _points(rows, "distance")
    for recipe, number in arms(rows):
        solver = _solver(rows, recipe, number)
        one, rest = points[(recipe, number, solver, few)], points[(recipe, number, solver, many)]
        bend = _of(notes, recipe, number, "straightness_relative")
        gap = _of(notes, recipe, number, "first_order_gap")
        words = (
            f"{_spread(one)} in {few} step{'s' * (few > 1)}, {_spread(rest)} in {many}; "
            f"straightness / cost {_spread(bend)}, first-order gap {_spread(gap)}"
        )
        costs = {r["seed"]: _number(r["transport_cost"]) for r in rows if _is(r, recipe, number)}
        cost = interval(costs.values())
        yield _label(recipe, number, solver), f"{words}; transport cost {_spread(cost)}"
    yield from _comparisons(rows)


def _is(row: Row, recipe: str, number: int) -> bool:
    return bool(row["recipe"] == recipe and row["round"] == number)


def _solver(rows: Sequence[Row], recipe: str, number: int) -> str:
    """What a flow is told by: its first solver, which is renoise only where that was forced."""
    return next(str(row["solver"]) for row in rows if _is(row, recipe, number))


def _of(notes: Mapping[str, Any], recipe: str, number: int, name: str) -> Interval:
    """A note's mean over seeds."""
    return interval(
        _number(note[name])
        for note in notes.values()
        if note["recipe"] == recipe and note["round"] == number and name in note
    )


def _comparisons(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    few, known = min(_steps(rows)), arms(rows)
    for recipe, number in known:
        for ours, theirs, steps in _RIVALS:
            both = recipe == ours and (theirs, number) in known
            for at in steps or [few]:
                if both and at in _steps(rows):
                    ratio = _ratio(rows, (recipe, number), (theirs, number), at)
                    yield (
                        f"{ours} against {theirs} in {at} step{'s' * (at > 1)}",
                        f"{_spread(ratio)} of its distance ({ratio.n} seeds, paired); "
                        f"{_separated(ratio)}",
                    )
    for recipe, number in known:
        renoised = [s for s in _steps(rows) if _has(rows, recipe, number, "renoise", s)]
        if renoised and _solver(rows, recipe, number) != "renoise":
            most = max(renoised)
            found = paired(
                [r for r in rows if _is(r, recipe, number) and r["steps"] == most],
                "distance",
                lambda r: r["solver"] == "renoise",
                lambda r: r["solver"] != "renoise",
            )
            half = "" if math.isnan(found.half_width) else f" ± {found.half_width:.2g}"
            yield (
                f"renoise against the plain solver, {recipe} in {most} steps",
                f"{found.mean:+.3g}{half} (paired over {found.n} seed{'s' * (found.n != 1)})",
            )


def _has(rows: Sequence[Row], recipe: str, number: int, solver: str, steps: int) -> bool:
    own = (r for r in rows if _is(r, recipe, number))
    return any(r["solver"] == solver and r["steps"] == steps for r in own)


def _ratio(
    rows: Sequence[Row], ours: tuple[str, int], theirs: tuple[str, int], steps: int
) -> Interval:
    """The ratio of distances, seed by seed."""

    def by_seed(arm: tuple[str, int]) -> dict[int, float]:
        solver = _solver(rows, *arm)
        return {
            row["seed"]: _number(row["distance"])
            for row in rows
            if _is(row, *arm) and row["steps"] == steps and row["solver"] == solver
        }

    one, other = by_seed(ours), by_seed(theirs)
    return interval(one[seed] / other[seed] for seed in sorted(one.keys() & other.keys()))


def _separated(ratio: Interval) -> str:
    if math.isnan(ratio.half_width):
        return "one seed says nothing about others"
    if ratio.high < 1:
        return "the interval lies below 1"
    return "the interval lies above 1" if ratio.low > 1 else "not separated from 1"


# --- the page ---


def page(results: Results, details: Mapping[str, Any]) -> str:
    """The report as one HTML page.

    Args:
        results: as they are written, with `notes`.
        details: `shown`: paths or images by the name of their flow, and the data beside them.
    """
    config = results["config"]
    count = len({row["seed"] for row in results["rows"]})
    subtitle = (
        f"{config.get('source', 'gaussian')} to {config.get('pipeline') or config['data']}, "
        f"{count} seed{'s' * (count != 1)}"
    )
    title = f"{results['verb'].capitalize()} report"
    return render(Page(title, subtitle, tuple(sections(results, details))))


def sections(results: Results, details: Mapping[str, Any]) -> Iterator[Section]:
    """The parts of the report, for a page of its own or one over several runs."""
    rows = results["rows"]
    cards = [Verdict(title, words, tone(title, words)) for title, words in findings(results)]
    cards += [Verdict("Mind this", words, "warning") for words in results["warnings"]]
    yield Section("What was found", (*cards, _curves(rows, results)))
    drawn = tuple(_drawings(details["shown"], results))
    if drawn:
        yield Section("What it looks like", drawn)
    yield Section("Every flow", (_flows(results), _bends(results), _distances(rows)))
    if any("pairs" in note for note in results["notes"].values()):
        yield Section("The pairs that reflow was trained on", (_pairs(results),))
    yield Section("How this was made", tuple(_origin(results)))


def tone(title: str, words: str) -> str:
    """How a finding may be taken."""
    return "gain" if "interval lies below 1" in words else "neutral"


def _curves(rows: Sequence[Row], results: Results) -> Figure:
    found = _points(rows, "distance")
    series = []
    for (recipe, number), solver in _lines(rows):
        steps = [s for s in _steps(rows) if (recipe, number, solver, s) in found]
        values = [found[(recipe, number, solver, s)] for s in steps]
        has_spread = not math.isnan(values[0].half_width)
        series.append(
            Series(
                _label(recipe, number, solver),
                x=[float(s) for s in steps],
                y=[math.log10(max(v.mean, 1e-12)) for v in values],
                low=[math.log10(max(v.low, 1e-2 * v.mean, 1e-12)) for v in values]
                if has_spread
                else None,
                high=[math.log10(max(v.high, 1e-12)) for v in values] if has_spread else None,
            )
        )
    name = NAMES.get(rows[0]["distance_name"], rows[0]["distance_name"])
    floor = interval(note["floor"] for note in results["notes"].values()).mean
    return lines(
        series,
        title="Distance against steps",
        x_label="steps of the solver",
        y_label=f"log10 of {name}",
        alt="Distance from the data by number of steps, a line a flow and solver.",
        x_scale="log",
        note=f"Mean over seeds with 95 % intervals; {_floor(rows)}: {floor:.3g} "
        f"(log10 {math.log10(max(floor, 1e-12)):.2f}).",
    )


def _drawings(shown: Mapping[str, Any], results: Results) -> Iterator[Figure]:
    reference = shown.get("reference")
    for name, array in shown.items():
        if name == "reference" or not np.asarray(array).size:
            continue
        values = np.asarray(array, dtype=np.float32)
        if values.ndim == 3:
            yield _paths(name, values, np.asarray(reference, dtype=np.float32))
        elif values.ndim == 5:
            yield _grid(name, values, results["config"]["steps"])


def _paths(name: str, states: np.ndarray, reference: np.ndarray) -> Figure:
    """Where points go, from the source to the target."""

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
        rows, columns = images.shape[:2]
        height, width = images.shape[-2:]
        canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), np.float32)
        for r in range(rows):
            for c in range(columns):
                picture = np.clip(images[r, c] * 0.5 + 0.5, 0, 1).transpose(1, 2, 0)
                top, left = r * (height + 1), c * (width + 1)
                canvas[top : top + height, left : left + width] = picture  # grey broadcasts
        axes.imshow(canvas, interpolation="nearest")
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


def _flows(results: Results) -> Table:
    rows = []
    for recipe, number in arms(results["rows"]):
        own = [r for r in results["rows"] if _is(r, recipe, number)]
        s = interval({r["seed"]: _number(r["straightness"]) for r in own}.values())
        cost = interval({r["seed"]: _number(r["transport_cost"]) for r in own}.values())
        relative = _of(results["notes"], recipe, number, "straightness_relative")
        gap = _of(results["notes"], recipe, number, "first_order_gap")
        gains = [
            _number(note["terminal_gain"])
            for note in results["notes"].values()
            if (note["recipe"], note["round"]) == (recipe, number) and "terminal_gain" in note
        ]
        measured = (s.mean, relative.mean, gap.mean, cost.mean, gains[0] if gains else math.nan)
        rows.append((named(recipe, number), *measured))
    costs = _costs(results["notes"])
    columns = ("straightness S", "S / cost", "first-order gap", "transport cost", "terminal gain")
    return Table(
        "Geometry, means over seeds",
        ("flow", *columns),
        rows,
        note="S is summed over dimensions, on 100 steps. A first-order gap below "
        f"{FIRST_ORDER:g} means that one step does what many do. The terminal gain is what an "
        f"error of the prediction is multiplied by in the first step.{costs}",
        formats=dict.fromkeys(columns, ".3g"),
    )


def _bends(results: Results) -> Figure:
    """First order and straightness are not the same: on a curved path the first can come alone."""
    known = arms(results["rows"])
    groups = {
        name: [math.log10(max(_of(results["notes"], *arm, quantity).mean, 1e-6)) for arm in known]
        for name, quantity in (
            ("straightness / cost", "straightness_relative"),
            ("first-order gap", "first_order_gap"),
        )
    }
    return bars(
        [named(*arm) for arm in known],
        groups,
        title="Straight, or first-order",
        x_label="log10",
        alt="Straightness and first-order gap of every flow.",
        note="Reflow on a curved path makes a flow first-order (one natural Euler step is exact) "
        "without making it straight; on the straight path the two are the same.",
    )


def _costs(notes: Mapping[str, Any]) -> str:
    first = [note for note in notes.values() if "optimal_cost" in note]
    if not first:
        return ""
    least = interval(note["optimal_cost"] for note in first).mean
    alone = interval(note["independent_cost"] for note in first).mean
    return (
        f" Between source and data the least transport cost is {least:.3g}, that of independent "
        f"pairs {alone:.3g}."
    )


def _distances(rows: Sequence[Row]) -> Table:
    found = _points(rows, "distance")
    evaluations = {
        (r["recipe"], r["round"], r["solver"], r["steps"]): r["evaluations"] for r in rows
    }
    table = [
        (_label(recipe, number, solver), steps, evaluations[key], one.mean, one.half_width, one.n)
        for key, one in found.items()
        for recipe, number, solver, steps in [key]
    ]
    return Table(
        "Distances",
        ("flow", "steps", "evaluations", "distance", "± 95 %", "seeds"),
        table,
        formats={"distance": ".4g", "± 95 %": ".2g"},
    )


def _pairs(results: Results) -> Table:
    rows = [
        (
            name,
            note["pairs"],
            note["pairs_distance"],
            note["source_mean"],
            note["source_deviation"],
            note["duplicates"],
            {True: "yes", False: "NO", None: "cannot be told"}[note["oriented"]],
            note["loss"],
            note["held_out_loss"],
        )
        for name, note in results["notes"].items()
        if "pairs" in note
    ]
    return Table(
        "Pairs and what was learnt of them",
        (
            "flow",
            "pairs",
            "distance to data",
            "largest mean of x0",
            "deviation of x0",
            "duplicates",
            "x0 is the source",
            "loss",
            "held-out loss",
        ),
        rows,
        note="A held-out loss far above the loss means too few pairs; a distance to the data far "
        "above that of the flow in many steps, too poor ones.",
        formats={
            "distance to data": ".3g",
            "largest mean of x0": ".2g",
            "deviation of x0": ".4g",
            "loss": ".3g",
            "held-out loss": ".3g",
        },
    )


def _origin(results: Results) -> Iterator[Part]:
    note = next(iter(results["notes"].values()))
    yield Text((f"Protocol: {note['protocol']}; seeds {_seeds(results)}.",))
    command = results["environment"].get("command")
    if command:
        yield Code(command)
    yield KeyValues("Settings", results["config"])
    yield KeyValues("Environment", results["environment"])


def _seeds(results: Results) -> str:
    return ", ".join(str(seed) for seed in sorted({row["seed"] for row in results["rows"]}))
