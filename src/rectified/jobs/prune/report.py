"""The report of `rectified prune`: what was found, in tables, figures and words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rectified.jobs.deploy import report as deployed
from rectified.jobs.job import Results
from rectified.jobs.prune import layers
from rectified.jobs.prune.comparisons import (
    Comparison,
    Effect,
    Row,
    arm_name,
    comparisons,
    effects,
)
from rectified.report import Column, Figure, Part, Section, Series, Table, Text, lines
from rectified.report import Verdict as Card
from rectified.statistics import Verdict, holm, interval

DENSITY = Column("density", "%", digits=2)
HALF_WIDTH = Column("± 95 %", "%", digits=2)  # of shares, and so in percentage points
POINTS = Column("difference", "points", digits=2)
SHARE = Column("share", "%", digits=1)
TONES = {"gain": "gain", "loss": "loss", "no evidence": "neutral"}
QUALITY = {
    "gain": "a gain in accuracy",
    "loss": "a loss of accuracy",
    "no evidence": "no evidence for accuracy",
}
RATE = {
    "gain": "lowers the dynamic dead rate",
    "loss": "raises the dynamic dead rate",
    "no evidence": "no evidence for the dynamic dead rate",
}


def subtitle(results: Results) -> str:
    """The line under the title: model, data, scores, arms, seeds."""
    config = results.settings
    seeds = len({row["seed"] for row in results.rows})
    return (
        f"{config['model']} on {config['data']}: {', '.join(config['score'])}, "
        f"arms {', '.join(config['ap'])}, {seeds} seeds"
    )


def sections(results: Results) -> Iterator[Section]:
    """The parts of the report, for a page of its own or one over several runs."""
    found, details = effects(results), results.details
    yield Section("What was found", tuple(_findings(results, found)), is_brief=True)
    yield Section("Accuracy and dead neurons", tuple(_curves(results.rows)))
    yield Section("The effect, density by density", tuple(_effect_tables(results.rows)))
    yield Section("Layer by layer", layers.parts(details["layers"]))
    if "deployment" in details:
        yield from deployed.sections(details["deployment"])
    yield Section("What to do next", (Text(tuple(_advice(results, found))),))


def _findings(results: Results, found: Sequence[Effect]) -> Iterator[Part]:
    yield _overview(results)
    yield from map(card, found)
    for note in results.details["notes"]:
        yield Card("Mind the norms", note[0].upper() + note[1:] + ".", "warning")
    if results.details["shortfalls"]:
        yield Card("Candidates ran out", _shortfall(results.details["shortfalls"]), "warning")
    if not found:
        yield Text(("No arm was compared with another: add arms to --ap, such as off,lite.",))


def card(effect: Effect) -> Card:
    """An effect in words.

    Example:
        >>> accuracy = Verdict("lite with magnitude", "off", "accuracy", "higher",
        ...                    0.0003, -0.0009, 0.0015, 0.6, 64, "no evidence")
        >>> dynamic = Verdict("lite with magnitude", "off", "dynamic_dnr", "lower",
        ...                   -0.017, -0.02, -0.014, 1e-9, 64, "gain")
        >>> card(Effect(Comparison("magnitude", "lite", "off"), accuracy, dynamic)).title
        'AP-lite with magnitude: lowers the dynamic dead rate, no evidence for accuracy'
    """
    of, accuracy, dynamic = effect.of, effect.accuracy, effect.dynamic
    text = (
        f"Dynamic dead neuron rate {_points(dynamic)}; accuracy {_points(accuracy)} "
        f"(percentage points, against {arm_name(of.base)} at the same densities, paired over "
        f"{accuracy.n} seeds, mean over all pruned cycles; p corrected for the number of "
        "comparisons)."
    )
    if of.ap == "pro" and of.base == "off":
        text += " This arm trained twice as long: add the arm off_pro to compare at equal training."
    title = f"{_named(of)}: {RATE[dynamic.outcome]}, {QUALITY[accuracy.outcome]}"
    return Card(title, text, TONES[accuracy.outcome])


def _named(of: Comparison) -> str:
    return f"{arm_name(of.ap)} with {of.score}"


def _points(found: Verdict) -> str:
    difference = POINTS.written(found.difference)
    if found.low is None or found.p is None:
        return f"{difference} ({'one seed: ' if found.n == 1 else ''}no interval)"
    low, high = POINTS.written(found.low), POINTS.written(found.high)
    return f"{difference}, 95 % interval {low} to {high}, p {found.p:.2g}"


def _shortfall(shortfalls: Sequence[Row]) -> str:
    cycles = sorted({entry["cycle"] for entry in shortfalls})
    arms = sorted({f"{entry['score']} {entry['ap']}" for entry in shortfalls})
    missing = sum(entry["missing"] for entry in shortfalls)
    return (
        f"Candidates ran out in cycle {', '.join(map(str, cycles))} "
        f"({', '.join(arms)}): {missing} weights were dropped by the score instead, so that the "
        "densities stay equal; a smaller ap_rate or ap_scope all leaves more candidates."
    )


def _overview(results: Results) -> Table:
    last = max(row["cycle"] for row in results.rows)
    rows = [
        (
            f"{row['score']}, {arm_name(row['ap'])}",
            row["cycle"],
            row["density"],
            row["accuracy_mean"],
            row["accuracy_ci95"],
            row["dynamic_dnr_mean"],
            row["n"],
        )
        for row in results.summary
        if row["cycle"] in (0, last // 2, last)
    ]
    accuracy = Column("accuracy", "%", "higher", 2)
    dynamic = Column("dynamic dead rate", "%", "lower", 2)
    columns = ("arm", "cycle", DENSITY, accuracy, HALF_WIDTH, dynamic, "n")
    return Table("First, middle and last cycle", columns, rows)


def _curves(rows: Sequence[Row]) -> Iterator[Figure]:
    yield _curve(rows, "accuracy", "Accuracy on the test split", "accuracy")
    title = "Dynamic dead neuron rate: how often a neuron that can fire is zero"
    yield _curve(rows, "dynamic_dnr", title, "dynamic dead neuron rate")
    title = "Static rate: neurons that never fire"
    yield _curve(rows, "static_dnr", title, "share of the neurons")


def _curve(rows: Sequence[Row], quantity: str, title: str, label: str) -> Figure:
    several = len({row["score"] for row in rows}) > 1
    series = [
        _series(
            [row for row in rows if (row["score"], row["ap"]) == (score, ap)],
            quantity,
            f"{score}, {arm_name(ap)}" if several else arm_name(ap),
        )
        for score, ap in dict.fromkeys((row["score"], row["ap"]) for row in rows)
    ]
    ends = "; ".join(
        f"{one.label} {SHARE.written(one.y[0])} to {SHARE.written(one.y[-1])}" for one in series
    )
    return lines(
        series,
        title=title,
        x_label="density: share of weights kept",
        y_label=label,
        alt=f"{title}, from the densest to the sparsest network: {ends}.",
        x_scale="log",
        x_percent=True,
        y_percent=True,
        invert_x=True,
        note="Means over seeds with 95 % t-intervals.",
    )


def _series(rows: Sequence[Row], quantity: str, label: str) -> Series:
    """An arm, cycle by cycle."""
    cycles = [
        [row for row in rows if row["cycle"] == cycle]
        for cycle in sorted({row["cycle"] for row in rows})
    ]
    density = [float(np.mean([row["density"] for row in members])) for members in cycles]
    found = [interval(row[quantity] for row in members) for members in cycles]
    means = [one.mean for one in found]
    if any(np.isnan(one.half_width) for one in found):
        return Series(label, density, means)
    return Series(label, density, means, [one.low for one in found], [one.high for one in found])


def _effect_tables(rows: Sequence[Row]) -> Iterator[Part]:
    compared = comparisons(rows)
    if not compared:
        yield Text(("One arm only: there is nothing to compare.",))
    yield from (_effect_table(rows, one) for one in compared)


def _effect_table(rows: Sequence[Row], one: Comparison) -> Table:
    density = {row["cycle"]: row["density"] for row in rows if row["cycle"] > 0}
    cycles = sorted(density)
    accuracy = [one.difference(rows, "accuracy", cycle) for cycle in cycles]
    dynamic = [one.difference(rows, "dynamic_dnr", cycle) for cycle in cycles]
    corrected = holm([found.p for found in accuracy])
    table = [
        (density[cycle], a.mean, a.half_width, p, d.mean, d.half_width)
        for cycle, a, p, d in zip(cycles, accuracy, corrected, dynamic, strict=True)
    ]
    columns = (
        DENSITY,
        Column("accuracy", "points", "higher", 2),
        HALF_WIDTH,
        Column("p (Holm)", digits=3),
        Column("dynamic rate", "points", "lower", 2),
        HALF_WIDTH,
    )
    return Table(
        f"{arm_name(one.ap)} minus {arm_name(one.base)}, {one.score}, in percentage points",
        columns,
        table,
        note="Paired by seed. p-values of accuracy are corrected for the number of densities.",
    )


def _advice(results: Results, found: Sequence[Effect]) -> Iterator[str]:
    best = results.details["saved"]
    yield (
        f"model.safetensors holds the network of {best['score']}, {arm_name(best['ap'])}, seed "
        f"{best['seed']}, at density {float(best['density']):.2%}: the one with the best "
        "validation accuracy at the end. Pruned weights are zeros in a plain state_dict."
    )
    yield _how_far(results.summary)
    yield from (_worth(effect) for effect in found if effect.of.ap in ("lite", "pro"))


def _how_far(summary: Sequence[Row]) -> str:
    """The sparsest point whose accuracy is within one percentage point of the dense network's."""
    dense = {(row["score"], row["ap"]): row for row in summary if row["cycle"] == 0}
    if len(dense) == len(summary):
        return "Nothing was pruned: give --cycles 1 or more."

    def lost(row: Row) -> Any:
        return dense[row["score"], row["ap"]]["accuracy_mean"] - row["accuracy_mean"]

    near = [row for row in summary if row["cycle"] and lost(row) <= 0.01]
    if not near:
        return (
            "Every pruned network lost more than one point of accuracy: prune less in a cycle "
            "(--rate), train longer (--epochs), or rewind to a later point (--rewind epoch:K)."
        )
    best = min(near, key=lambda row: row["density"])
    return (
        f"Down to density {best['density']:.2%} ({best['score']}, {arm_name(best['ap'])}) the mean "
        f"accuracy stays within one point of the dense network's ({100 * lost(best):.2f} lost)."
    )


def _worth(effect: Effect) -> str:
    name, found = _named(effect.of), effect.accuracy
    if found.low is None or found.high is None:
        return f"One seed cannot tell whether {name} helps: run --seeds 5 or more."
    if found.outcome != "no evidence":
        use = "worth its place" if found.outcome == "gain" else "better left out"
        return f"{name} is {use} on this task."
    return (
        f"Whether {name} changes accuracy is not settled: an effect beyond "
        f"{100 * max(abs(found.low), abs(found.high)):.2f} points is unlikely, a smaller one would "
        "need more seeds."
    )
