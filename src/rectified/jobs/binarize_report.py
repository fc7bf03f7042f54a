"""What `rectified binarize` says: a page for people, and a few lines for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rectified.binary.estimators import ESTIMATORS
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

Results = Mapping[str, Any]
Row = Mapping[str, Any]


class _Titles(dict[str, str]):
    """What the arms are called; one that is in no table is called by its name."""

    def __missing__(self, name: str) -> str:
        return ESTIMATORS[name].title if name in ESTIMATORS else name


NAMES = _Titles()
WAYS = {
    "float": "float, PyTorch",
    "channels_last": "float, PyTorch, channels last",
    "packed": "packed",
}


def comparisons(rows: Sequence[Row]) -> list[tuple[str, str, Interval]]:
    """Every pair of estimators, the later minus the earlier, paired by seed, after the last epoch.

    The network in full precision is compared with no estimator: it is a ceiling, not a rival.
    """
    final = _final(rows)
    names = [name for name in dict.fromkeys(row["estimator"] for row in final) if name != "float"]
    return [
        (ours, base, paired(final, "accuracy", _is(ours), _is(base)))
        for place, ours in enumerate(names)
        for base in names[:place]
    ]


def _is(estimator: str) -> Any:
    return lambda row: row["estimator"] == estimator


def _final(rows: Sequence[Row]) -> list[Row]:
    last = max(row["epoch"] for row in rows)
    return [row for row in rows if row["epoch"] == last]


def verdict(ours: str, base: str, found: Interval) -> Verdict:
    """A difference in words.

    Example:
        >>> verdict("reste", "ste", Interval(0.0082, 0.0136, 0.2, 3)).title
        'ReSTE and STE: not separated'
    """
    text = (
        f"Accuracy {_points(found)} percentage points ({NAMES[ours]} minus {NAMES[base]}, paired "
        f"over {found.n} seeds, after the last epoch)."
    )
    if not found.excludes_zero:
        return Verdict(f"{NAMES[ours]} and {NAMES[base]}: not separated", text)
    word = "above" if found.mean > 0 else "below"
    tone = "gain" if found.mean > 0 else "loss"
    return Verdict(f"{NAMES[ours]} is {word} {NAMES[base]}", text, tone)


def _points(found: Interval) -> str:
    if math.isnan(found.half_width):
        return f"{100 * found.mean:+.2f} (one seed: no interval)"
    return f"{100 * found.mean:+.2f} ± {100 * found.half_width:.2f}"


def text(results: Results, details: Mapping[str, Any]) -> str:
    """A short table for the terminal, then what it shows."""
    rows = results["rows"]
    final = _final(rows)
    lines_ = [
        f"{'estimator':<28}{'accuracy':>10}{'':<9}{'estimating error':>18}"
        f"{'gradient instability':>22}{'n':>4}"
    ]
    for row in results["summary"]:
        half = row["accuracy_ci95"]
        spread = "" if math.isnan(half) else f" ± {100 * half:.2f}"
        error, instability = (
            interval(one[name] for one in final if one["estimator"] == row["estimator"]).mean
            for name in ("estimating_error", "gradient_instability")
        )
        lines_.append(
            f"{NAMES[row['estimator']]:<28}{100 * row['accuracy_mean']:>10.2f}{spread:<9}"
            f"{_number(error, '.4g'):>18}{_number(instability, '.3g'):>22}{row['n']:>4}"
        )
    for ours, base, found in comparisons(rows):
        one = verdict(ours, base, found)
        lines_.append(f"\n{one.title}\n  {one.text}")
    return "\n".join([*lines_, *_packed_lines(details.get("packing"))])


def _number(value: float, how: str) -> str:
    return "" if math.isnan(value) else format(value, how)


def _packed_lines(packing: Row | None) -> list[str]:
    if packing is None:
        return []
    sizes = packing["sizes"]
    said = [
        f"\npacked: {sizes['bytes_float']:,} bytes float, {sizes['bytes_packed']:,} packed "
        f"({sizes['bytes_float'] / sizes['bytes_packed']:.1f}x smaller), outputs within "
        f"{sizes['max_abs_difference']:.1e}, {packing['agreement']:.2%} the same class"
    ]
    for batch, times in sizes["milliseconds"].items():
        shown = ", ".join(f"{way} {time:.3f} ms" for way, time in times.items())
        said.append(f"  {batch.replace('_', ' ')}: {shown}")
    return said


def page(results: Results, details: Mapping[str, Any]) -> str:
    """The report as one HTML page."""
    config = results["config"]
    seeds = len({row["seed"] for row in results["rows"]})
    subtitle = (
        f"{config['model']} on {config['data']}, 1W/{config['activation_bits']}A: "
        f"{', '.join(config['estimator'])}, {seeds} seed{'s' * (seeds != 1)}"
    )
    return render(Page("Binarization report", subtitle, sections(results, details)))


def sections(results: Results, details: Mapping[str, Any]) -> tuple[Section, ...]:
    """The parts of the report, for a page of its own or one over several runs."""
    packing = details.get("packing")
    measured = [row for row in details["layers"] if row["error"] is not None]
    return (
        Section("What was found", tuple(_findings(results))),
        Section("Over training", tuple(_curves(results))),
        *([Section("Estimators over training", tuple(_spreads(measured)))] if measured else []),
        *([Section("Layer by layer", tuple(_layers(measured, details)))] if measured else []),
        *([Section("On bits", tuple(_packed(packing)))] if packing else []),
        Section("What to do next", (Text(tuple(_advice(results, details))),)),
        Section("How this was made", tuple(_origin(results))),
    )


def _findings(results: Results) -> Iterator[Part]:
    found = comparisons(results["rows"])
    for ours, base, difference in found:
        yield verdict(ours, base, difference)
    if not found:
        yield Text(("One estimator only: there is nothing to compare.",))
    final = _final(results["rows"])
    rows = []
    for row in results["summary"]:
        mine = [one for one in final if one["estimator"] == row["estimator"]]
        rows.append(
            (
                NAMES[row["estimator"]],
                100 * row["accuracy_mean"],
                _or_none(100 * row["accuracy_ci95"]),
                _or_none(interval(one["estimating_error"] for one in mine).mean),
                _or_none(interval(one["gradient_instability"] for one in mine).mean),
                row["n"],
            )
        )
    columns = ("estimator", "accuracy, %", "± 95 %", "estimating error", "instability", "seeds")
    yield Table(
        "After the last epoch",
        columns,
        rows,
        note=(
            "Test accuracy of the last epoch, not of the best. The paper's indicators: e, the sum "
            "over layers of ||f(w) - sign(w)||, and s, the sum of var |g|. s grows with the square "
            "of any factor on the gradient, so it compares gain more than unevenness."
        ),
        formats={"accuracy, %": ".2f", "± 95 %": ".2f", "instability": ".2e"},
    )
    if found:
        yield _differences(found)


def _differences(found: Sequence[tuple[str, str, Interval]]) -> Table:
    corrected = holm([one.p for _, _, one in found])
    rows = [
        (
            f"{NAMES[ours]} - {NAMES[base]}",
            100 * one.mean,
            _or_none(100 * one.half_width),
            _or_none(p),
        )
        for (ours, base, one), p in zip(found, corrected, strict=True)
    ]
    columns = ("difference", "points", "± 95 %", "p (Holm)")
    return Table(
        "Differences in accuracy, paired by seed",
        columns,
        rows,
        note="p-values are corrected for the number of differences.",
        formats={"points": "+.2f", "± 95 %": ".2f", "p (Holm)": ".3f"},
    )


def _or_none(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _curves(results: Results) -> Iterator[Figure]:
    rows = results["rows"]
    shown = {
        "accuracy": ("Accuracy on the test split", "accuracy"),
        "estimating_error": ("Estimating error of the weights, e of the paper", "e"),
        "gradient_instability": ("Gradient instability, s of the paper", "s, logarithmic"),
    }
    for metric, (title, label) in shown.items():
        known = [row for row in rows if not math.isnan(row[metric])]
        if not known:
            continue
        transform = math.log10 if metric == "gradient_instability" else float
        if metric == "gradient_instability":
            known, label = [row for row in known if row[metric] > 0], "log10 of s"
        yield _figure(known, metric, title, label, transform)


def _figure(rows: Sequence[Row], metric: str, title: str, label: str, transform: Any) -> Figure:
    series = []
    for estimator in dict.fromkeys(row["estimator"] for row in rows):
        epochs: dict[int, list[float]] = {}
        for row in rows:
            if row["estimator"] == estimator:
                epochs.setdefault(row["epoch"], []).append(transform(row[metric]))
        found = [interval(values) for _, values in sorted(epochs.items())]
        known = all(not math.isnan(one.half_width) for one in found)
        series.append(
            Series(
                NAMES[estimator],
                sorted(epochs),
                [one.mean for one in found],
                [one.low for one in found] if known else None,
                [one.high for one in found] if known else None,
            )
        )
    ends = "; ".join(f"{one.label} {one.y[0]:.3g} to {one.y[-1]:.3g}" for one in series)
    return lines(
        series,
        title=title,
        x_label="epoch",
        y_label=label,
        alt=f"{title}, first to last epoch: {ends}.",
        y_percent=metric == "accuracy",
        note="Means over seeds with 95 % t-intervals.",
    )


def _spreads(layers: Sequence[Row]) -> Iterator[Part]:
    """What can be compared between layers and estimators: the scale-free indicators."""
    quantities = {
        ("weights", "error"): "Estimating error of the weights: rms of f(w) - sign(w)",
        ("activations", "error"): "Estimating error of the activations",
        ("weights", "dispersion"): "Dispersion of the gradient: std |g| / mean |g|",
        ("weights", "gain"): "Gain on the weights: mean slope",
    }
    for (tensor, quantity), title in quantities.items():
        chosen = [row for row in layers if row["tensor"] == tensor]
        if chosen:
            yield _figure(_means(chosen, quantity), "value", title, quantity, float)


def _means(rows: Sequence[Row], quantity: str) -> list[Row]:
    """The mean over layers, a row an estimator, seed and epoch."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for row in rows:
        key = row["estimator"], row["seed"], row["epoch"]
        found.setdefault(key, []).append(row[quantity])
    return [
        {"estimator": estimator, "seed": seed, "epoch": epoch, "value": float(np.mean(values))}
        for (estimator, seed, epoch), values in found.items()
    ]


def _layers(layers: Sequence[Row], details: Mapping[str, Any]) -> Iterator[Part]:
    last = max(row["epoch"] for row in layers)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in layers:
        if row["epoch"] == last:
            groups.setdefault((row["layer"], row["tensor"], row["estimator"]), []).append(row)
    quantities = ("error", "gain", "slope_spread", "inside", "beyond", "dispersion", "flipped")
    rows = [
        (layer, tensor, NAMES[estimator], *(_mean(members, name) for name in quantities))
        for (layer, tensor, estimator), members in groups.items()
    ]
    columns: tuple[str, ...] = ("layer", "of", "estimator", "error", "gain", "slope spread")
    columns += ("inside 0.1", "beyond 1.5", "dispersion", "flipped")
    yield Table(
        "Indicators of the last update, mean over seeds",
        columns,
        rows,
        note=(
            "error: rms of f(z) - sign(z); gain and slope spread: mean of the slope, and its "
            "deviation over that; inside and beyond: shares of abs(z) <= 0.1 and > 1.5; "
            "dispersion: std |g| / mean |g|; flipped: share of the signs that the update changed."
        ),
        formats=dict.fromkeys(columns[3:6], ".3f")
        | dict.fromkeys(("inside 0.1", "beyond 1.5"), ".1%")
        | {"dispersion": ".3f", "flipped": ".3%"},
    )
    kinds = [
        (one["name"], one["kind"], one["weights"], "1 bit" if one["is_binary"] else "float")
        for one in details["converted"]
    ]
    columns = ("layer", "kind", "weights", "stored as")
    yield Table("What is binary", columns, kinds, formats={"weights": ",d"})


def _mean(rows: Sequence[Row], quantity: str) -> float | None:
    values = [row[quantity] for row in rows if row[quantity] is not None]
    return float(np.mean(values)) if values else None


def _packed(packing: Row) -> Iterator[Part]:
    sizes = packing["sizes"]
    yield Verdict(
        f"{sizes['bytes_float'] / sizes['bytes_packed']:.1f} times smaller on disk",
        f"{sizes['bytes_float']:,} bytes in floating point, {sizes['bytes_packed']:,} packed. "
        f"Outputs differ by at most {sizes['max_abs_difference']:.1e}; "
        f"{packing['agreement']:.2%} of the examples get the same class.",
        "gain",
    )
    for batch, times in sizes["milliseconds"].items():
        best = min(times["float"], times["channels_last"])
        yield Verdict(
            f"{best / times['packed']:.1f} times the float speed at {batch.replace('_', ' ')}",
            f"{times['packed']:.3f} ms against {best:.3f} ms of the faster float layout.",
            "gain" if best > 1.05 * times["packed"] else "neutral",
        )
    columns = ("way to run", *(f"ms, {b.replace('_', ' ')}" for b in sizes["milliseconds"]))
    rows: list[list[str | float]] = [
        [words, *(times[way] for times in sizes["milliseconds"].values())]
        for way, words in WAYS.items()
    ]
    note = "Medians, the ways taking turns on this machine."
    formats = dict.fromkeys(columns[1:], ".3f")
    yield Table("Time of the whole network", columns, rows, note=note, formats=formats)
    layers = [
        (one["name"], one["way"], one["bytes_float"], one["bytes_packed"], one["reason"])
        for one in packing["layers"]
    ]
    columns = ("layer", "runs as", "bytes of weights, float", "packed", "remark")
    formats = {"bytes of weights, float": ",d", "packed": ",d"}
    yield Table("Layer by layer", columns, layers, formats=formats)
    if packing["notes"]:
        yield Text(tuple(f"{note[0].upper()}{note[1:]}." for note in packing["notes"]))


def _advice(results: Results, details: Mapping[str, Any]) -> Iterator[str]:
    if "saved" in details:
        saved = details["saved"]
        yield (
            f"model.safetensors holds the network of {NAMES[saved['estimator']]}, seed "
            f"{saved['seed']}: the one with the best validation accuracy at the end."
        )
    if "packing" not in details:
        yield "Give --pack to store it on bits, and to see how fast and how equal that is."
    seeds = len({row["seed"] for row in results["rows"]})
    found = [one for one in comparisons(results["rows"]) if not math.isnan(one[2].half_width)]
    unclear = [one for one in found if not one[2].excludes_zero]
    if seeds < 2:
        yield "One seed cannot tell estimators apart: run --seeds 8 or more."
    for ours, base, one in unclear:
        yield (
            f"Whether {NAMES[ours]} differs from {NAMES[base]} is not settled: a difference beyond "
            f"{100 * max(abs(one.low), abs(one.high)):.2f} points is unlikely, a smaller one would "
            "need more seeds."
        )
    names = {row["estimator"] for row in results["rows"]}
    if "reste" in names and not names & {"ste_gain", "wide_ste"}:
        yield (
            "Add the controls wide_ste (where ReSTE starts) and ste_gain (its gain on the weights "
            "without its shape) to see what of a difference is ReSTE's shape."
        )


def _origin(results: Results) -> Iterator[Part]:
    command = results["environment"].get("command")
    if command:
        yield Code(command)
    yield KeyValues("Settings", results["config"])
    yield KeyValues("Environment", results["environment"])
