"""What `rectified prune` says: a page for people, and a few lines for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rectified.jobs import deploy_report
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
from rectified.report.page import Cell
from rectified.statistics import Interval, holm, interval, paired

BASES = {"pro": "off_pro"}  # the arm of equal training, where it was run; else off
NAMES = {
    "off": "without AP",
    "lite": "AP-lite",
    "pro": "AP-pro",
    "random": "random share",
    "any_sign": "smallest movement, any sign",
    "off_pro": "without AP, double training",
}
PRUNED_AP = ("lite", "pro", "random", "any_sign", "off_pro")

Results = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Effect:
    """What an arm does compared with its base, seed by seed, over all pruned cycles.

    Attributes:
        score: the pruning method of both.
        ap: the arm.
        base: what it is compared with.
        accuracy: difference of accuracies, in [-1, 1].
        dynamic: difference of dynamic dead neuron rates.
    """

    score: str
    ap: str
    base: str
    accuracy: Interval
    dynamic: Interval


def effects(rows: Sequence[Row]) -> list[Effect]:
    """The paired effect of every arm that has a base, over the mean of all pruned cycles."""
    return [
        Effect(
            score,
            ap,
            base,
            _difference(rows, "accuracy", score, ap, base),
            _difference(rows, "dynamic_dnr", score, ap, base),
        )
        for score, ap, base in _comparisons(rows)
    ]


def _comparisons(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    present = {(row["score"], row["ap"]) for row in rows if row["cycle"] > 0}
    for score in dict.fromkeys(row["score"] for row in rows):
        for ap in PRUNED_AP:
            base = BASES.get(ap, "off")
            base = base if (score, base) in present else "off"
            if (score, ap) in present and (score, base) in present:
                yield score, ap, base


def _difference(
    rows: Sequence[Row], metric: str, score: str, ap: str, base: str, cycle: int | None = None
) -> Interval:
    def of(name: str) -> Any:
        return lambda row: (
            row["score"] == score
            and row["ap"] == name
            and (row["cycle"] > 0 if cycle is None else row["cycle"] == cycle)
        )

    return paired(rows, metric, of(ap), of(base))


def verdict(effect: Effect) -> Verdict:
    """An effect in words.

    Example:
        >>> effect = Effect("magnitude", "lite", "off", Interval(0.0003, 0.0012, 0.6, 64),
        ...                 Interval(-0.017, 0.003, 1e-9, 64))
        >>> verdict(effect).title
        'AP-lite with magnitude: lowers the dynamic dead rate, no evidence for accuracy'
    """
    name = f"{NAMES[effect.ap]} with {effect.score}"
    rate = _direction(effect.dynamic, "lowers", "raises", "no evidence for the dynamic dead rate")
    if effect.dynamic.excludes_zero:
        rate += " the dynamic dead rate"
    quality = _direction(effect.accuracy, "a loss of", "a gain in", "no evidence for") + " accuracy"
    text = (
        f"Dynamic dead neuron rate {_points(effect.dynamic)}; accuracy {_points(effect.accuracy)} "
        f"(percentage points, against {NAMES[effect.base]} at the same densities, paired over "
        f"{effect.accuracy.n} seeds, mean over all pruned cycles)."
    )
    if effect.ap == "pro" and effect.base == "off":
        text += " This arm trained twice as long: add the arm off_pro to compare at equal training."
    tone = "neutral"
    if effect.accuracy.excludes_zero:
        tone = "gain" if effect.accuracy.mean > 0 else "loss"
    return Verdict(f"{name}: {rate}, {quality}", text, tone)


def _direction(found: Interval, below: str, above: str, unclear: str) -> str:
    if not found.excludes_zero:
        return unclear
    return below if found.mean < 0 else above


def _points(found: Interval) -> str:
    if math.isnan(found.half_width):
        return f"{100 * found.mean:+.2f} (one seed: no interval)"
    return (
        f"{100 * found.mean:+.2f}, 95 % interval {100 * found.low:+.2f} to {100 * found.high:+.2f}"
    )


def text(results: Results, details: Mapping[str, Any]) -> str:
    """A short table for the terminal: first, middle and last cycle, then the effects."""
    rows, summary = results["rows"], results["summary"]
    last = max(row["cycle"] for row in rows)
    shown = sorted({0, last // 2, last})
    lines_ = [
        f"{'score':<16}{'ap':<10}{'cycle':>6}{'density':>9}{'accuracy':>18}"
        f"{'dynamic dead':>14}{'n':>4}"
    ]
    for row in summary:
        if row["cycle"] in shown:
            half = row["accuracy_ci95"]
            spread = "" if math.isnan(half) else f" ± {100 * half:.2f}"
            lines_.append(
                f"{row['score']:<16}{row['ap']:<10}{row['cycle']:>6}{row['density']:>9.2%}"
                f"{100 * row['accuracy_mean']:>10.2f}{spread:<8}{row['dynamic_dnr_mean']:>13.2%}"
                f"{row['n']:>5}"
            )
    found = [verdict(effect) for effect in effects(rows)]
    lines_ += [f"\n{one.title}\n  {one.text}" for one in found]
    lines_ += deploy_report.lines(details["deployment"]) if "deployment" in details else []
    lines_ += [f"\nnote: {note}" for note in details["notes"]]
    lines_ += [f"\nnote: {_shortfall(details)}"] if details["shortfalls"] else []
    return "\n".join(lines_)


def _shortfall(details: Mapping[str, Any]) -> str:
    short = details["shortfalls"]
    cycles = sorted({entry["cycle"] for entry in short})
    arms = sorted({f"{entry['score']} {entry['ap']}" for entry in short})
    missing = sum(entry["missing"] for entry in short)
    return (
        f"candidates ran out in cycle {', '.join(map(str, cycles))} "
        f"({', '.join(arms)}): {missing} weights were dropped by the score instead, so that the "
        "densities stay equal; a smaller ap_rate or ap_scope all leaves more candidates"
    )


def page(results: Results, details: Mapping[str, Any]) -> str:
    """The report as one HTML page."""
    return render(Page("Pruning report", subtitle(results), sections(results, details)))


def subtitle(results: Results) -> str:
    """What was run, in one line."""
    config = results["config"]
    return (
        f"{config['model']} on {config['data']}: {', '.join(config['score'])}, "
        f"arms {', '.join(config['ap'])}, {_seed_count(results)} seeds"
    )


def sections(results: Results, details: Mapping[str, Any]) -> tuple[Section, ...]:
    """The parts of the report, for a page of its own or one over several runs."""
    deployed = details.get("deployment")
    return (
        Section("What was found", tuple(_findings(results, details))),
        Section("Accuracy and dead neurons", tuple(_curves(results))),
        Section("The effect, density by density", tuple(_effect_tables(results))),
        Section("Layer by layer", tuple(_layers(details))),
        *([Section("Deployment", tuple(deploy_report.parts(deployed)))] if deployed else []),
        Section("What to do next", (Text(tuple(_advice(results, details))),)),
        Section("How this was made", tuple(_origin(results))),
    )


def _seed_count(results: Results) -> int:
    return len({row["seed"] for row in results["rows"]})


def _findings(results: Results, details: Mapping[str, Any]) -> Iterator[Part]:
    found = effects(results["rows"])
    yield from (verdict(effect) for effect in found)
    for note in details["notes"]:
        yield Verdict("Mind the norms", note[0].upper() + note[1:] + ".", "warning")
    if details["shortfalls"]:
        note = _shortfall(details)
        yield Verdict("Candidates ran out", note[0].upper() + note[1:] + ".", "warning")
    if not found:
        yield Text(("No arm was compared with another: add arms to --ap, such as off,lite.",))
    yield _overview(results)


def _overview(results: Results) -> Table:
    last = max(row["cycle"] for row in results["rows"])
    rows = [
        (
            f"{row['score']}, {NAMES[row['ap']]}",
            row["cycle"],
            row["density"],
            100 * row["accuracy_mean"],
            _or_none(100 * row["accuracy_ci95"]),
            row["dynamic_dnr_mean"],
        )
        for row in results["summary"]
        if row["cycle"] in (0, last // 2, last)
    ]
    columns = ("arm", "cycle", "density", "accuracy, %", "± 95 %", "dynamic dead rate")
    formats = {"density": ".2%", "accuracy, %": ".2f", "± 95 %": ".2f"}
    formats["dynamic dead rate"] = ".1%"
    return Table("First, middle and last cycle", columns, rows, formats=formats)


def _or_none(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _curves(results: Results) -> Iterator[Figure]:
    yield _curve(results, "accuracy", "Accuracy on the test split", "accuracy")
    yield _curve(
        results,
        "dynamic_dnr",
        "Dynamic dead neuron rate: how often a neuron that can fire is zero",
        "dynamic dead neuron rate",
    )
    yield _curve(
        results, "static_dnr", "Static rate: neurons that never fire", "share of the neurons"
    )


def _curve(results: Results, metric: str, title: str, label: str) -> Figure:
    rows = results["rows"]
    scores = list(dict.fromkeys(row["score"] for row in rows))
    series = []
    for score, ap in dict.fromkeys((row["score"], row["ap"]) for row in rows):
        points = _by_cycle(rows, metric, score, ap)
        density = [point[0] for point in points]
        found = [point[1] for point in points]
        name = NAMES[ap] if len(scores) == 1 else f"{score}, {NAMES[ap]}"
        with_interval = all(not math.isnan(one.half_width) for one in found)
        series.append(
            Series(
                name,
                density,
                [one.mean for one in found],
                [one.low for one in found] if with_interval else None,
                [one.high for one in found] if with_interval else None,
            )
        )
    ends = "; ".join(f"{one.label} {one.y[0]:.1%} to {one.y[-1]:.1%}" for one in series)
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


def _by_cycle(
    rows: Sequence[Row], metric: str, score: str, ap: str
) -> list[tuple[float, Interval]]:
    cycles: dict[int, list[Row]] = {}
    for row in rows:
        if row["score"] == score and row["ap"] == ap:
            cycles.setdefault(row["cycle"], []).append(row)
    return [
        (
            float(np.mean([row["density"] for row in members])),
            interval(row[metric] for row in members),
        )
        for _, members in sorted(cycles.items())
    ]


def _effect_tables(results: Results) -> Iterator[Part]:
    rows = results["rows"]
    cycles = sorted({row["cycle"] for row in rows if row["cycle"] > 0})
    density = {row["cycle"]: row["density"] for row in rows}
    for score, ap, base in _comparisons(rows):
        accuracy = [_difference(rows, "accuracy", score, ap, base, c) for c in cycles]
        dynamic = [_difference(rows, "dynamic_dnr", score, ap, base, c) for c in cycles]
        corrected = holm([one.p for one in accuracy])
        table = [
            (
                f"{density[c]:.2%}",
                100 * a.mean,
                _or_none(100 * a.half_width),
                _or_none(p),
                100 * d.mean,
                _or_none(100 * d.half_width),
            )
            for c, a, d, p in zip(cycles, accuracy, dynamic, corrected, strict=True)
        ]
        columns = ("density", "accuracy", "± 95 %", "p (Holm)", "dynamic rate", "± 95 % of it")
        yield Table(
            f"{NAMES[ap]} minus {NAMES[base]}, {score}, in percentage points",
            columns,
            table,
            note="Paired by seed. p-values of accuracy are corrected for the number of densities.",
            formats=dict.fromkeys(columns[1:], ".2f") | {"p (Holm)": ".3f"},
        )
    if not list(_comparisons(rows)):
        yield Text(("One arm only: there is nothing to compare.",))


def _layers(details: Mapping[str, Any]) -> Iterator[Part]:
    layers = _mean_by_name(details["layers"], "layer", lambda row: row["kept"] / row["weights"])
    yield _layer_figure(layers, "Kept weights at the end", "density")
    sites = _mean_by_name(details["layers"], "site", lambda row: row["dynamic"])
    yield _layer_figure(sites, "Dynamic dead neuron rate at the end", "dynamic dead neuron rate")
    yield _layer_table(details["layers"])
    yield _site_table(details["layers"])


def _mean_by_name(
    rows: Sequence[Row], kind: str, value: Any
) -> dict[tuple[str, str], dict[str, float]]:
    """Arm -> name -> mean over seeds."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row["kind"] == kind:
            arm = found.setdefault((row["score"], row["ap"]), {})
            arm.setdefault(row["name"], []).append(value(row))
    return {
        arm: {name: float(np.mean(values)) for name, values in names.items()}
        for arm, names in found.items()
    }


def _layer_figure(
    arms: Mapping[tuple[str, str], Mapping[str, float]], title: str, label: str
) -> Figure:
    names = list(next(iter(arms.values())))
    scores = {score for score, _ in arms}
    groups = {
        NAMES[ap] if len(scores) == 1 else f"{score}, {NAMES[ap]}": [one[n] for n in names]
        for (score, ap), one in arms.items()
    }
    return bars(
        names, groups, title=title, x_label=label, x_percent=True, alt=f"{title}, layer by layer."
    )


def _layer_table(rows: Sequence[Row]) -> Table:
    means = {
        quantity: _mean_by_name(rows, "layer", lambda row, q=quantity: row[q])
        for quantity in ("weights", "kept")
    }
    table = [
        (name, f"{score}, {NAMES[ap]}", weights, kept, kept / weights)
        for (score, ap), names in means["kept"].items()
        for name, kept in names.items()
        for weights in [means["weights"][score, ap][name]]
    ]
    columns = ("layer", "arm", "weights", "kept", "density")
    formats = {"weights": ",.0f", "kept": ",.0f", "density": ".2%"}
    return Table("Weights by layer, mean over seeds", columns, table, formats=formats)


def _site_table(rows: Sequence[Row]) -> Table:
    quantities = ("neurons", "dynamic", "never_fires", "masked", "constant")
    means = {
        quantity: _mean_by_name(rows, "site", lambda row, q=quantity: row[q])
        for quantity in quantities
    }
    table: list[tuple[Cell, ...]] = [
        (name, f"{score}, {NAMES[ap]}", *(means[q][score, ap][name] for q in quantities))
        for (score, ap), names in means["dynamic"].items()
        for name in names
    ]
    columns = ("activation", "arm", "neurons", "dynamic", "never fires", "masked", "constant")
    return Table(
        "Dead neurons by activation, mean over seeds",
        columns,
        table,
        note=(
            "dynamic: how often a neuron that fires at all is zero; never fires: zero on every "
            "example; masked: all incoming weights pruned; constant: fires, always at the same "
            "value."
        ),
        formats=dict.fromkeys(columns[3:], ".1%") | {"neurons": ",.0f"},
    )


def _advice(results: Results, details: Mapping[str, Any]) -> Iterator[str]:
    saved = details["saved"]
    yield (
        f"model.safetensors holds the network of {saved['score']}, {NAMES[saved['ap']]}, seed "
        f"{saved['seed']}, at density {float(saved['density']):.2%}: the one with the best "
        "validation accuracy at the end. Pruned weights are zeros in a plain state_dict."
    )
    yield _how_far(results)
    for effect in effects(results["rows"]):
        if effect.ap in ("lite", "pro"):
            yield _what_about(effect)


def _how_far(results: Results) -> str:
    """The sparsest point whose accuracy is within one percentage point of the dense network's."""
    best: dict[str, Any] | None = None
    dense = {(r["score"], r["ap"]): r for r in results["summary"] if r["cycle"] == 0}
    for row in results["summary"]:
        lost = dense[row["score"], row["ap"]]["accuracy_mean"] - row["accuracy_mean"]
        if row["cycle"] and lost <= 0.01 and (best is None or row["density"] < best["density"]):
            best = {**row, "lost": lost}
    if len(dense) == len(results["summary"]):
        return "Nothing was pruned: give --cycles 1 or more."
    if best is None:
        return (
            "Every pruned network lost more than one point of accuracy: prune less in a cycle "
            "(--rate), train longer (--epochs), or rewind to a later point (--rewind epoch:K)."
        )
    return (
        f"Down to density {best['density']:.2%} ({best['score']}, {NAMES[best['ap']]}) the mean "
        f"accuracy stays within one point of the dense network's ({100 * best['lost']:.2f} lost)."
    )


def _what_about(effect: Effect) -> str:
    name, found = NAMES[effect.ap], effect.accuracy
    if math.isnan(found.half_width):
        return f"One seed cannot tell whether {name} helps: run --seeds 5 or more."
    if found.excludes_zero:
        use = "worth its place" if found.mean > 0 else "better left out"
        return f"{name} with {effect.score} is {use} on this task."
    return (
        f"Whether {name} with {effect.score} changes accuracy is not settled: an effect beyond "
        f"{100 * max(abs(found.low), abs(found.high)):.2f} points is unlikely, a smaller one would "
        "need more seeds."
    )


def _origin(results: Results) -> Iterator[Part]:
    command = results["environment"].get("command")
    if command:
        yield Code(command)
    yield KeyValues("Settings", results["config"])
    yield KeyValues("Environment", results["environment"])
