"""The findings of a run of `rectified binarize`, and its page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rectified.binary.estimators import ESTIMATORS
from rectified.jobs.job import Results
from rectified.report import (
    Column,
    Figure,
    Part,
    Section,
    Series,
    Table,
    Text,
    lines,
)
from rectified.report import Verdict as Card
from rectified.statistics import Verdict, interval, paired
from rectified.statistics import verdicts as judged

Row = Mapping[str, Any]

WAYS = {
    "float": "float, PyTorch",
    "channels_last": "float, PyTorch, channels last",
    "packed": "packed",
}


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The accuracy after the last epoch, over seeds, a row per estimator.

    Example:
        >>> rows = [{"seed": s, "estimator": "ste", "epoch": e, "accuracy": (s + e) / 10}
        ...         for s in (1, 3) for e in (1, 2)]
        >>> [(line["estimator"], line["accuracy_mean"], line["n"]) for line in summarise(rows)]
        [('ste', 0.4, 2)]
    """
    final = _final(rows)
    lines_ = []
    for estimator in dict.fromkeys(row["estimator"] for row in final):
        mean = interval(row["accuracy"] for row in final if row["estimator"] == estimator)
        lines_.append(
            {
                "estimator": estimator,
                "accuracy_mean": mean.mean,
                "accuracy_ci95": mean.half_width,
                "n": mean.n,
            }
        )
    return lines_


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every pair of estimators, the later minus the earlier, paired by seed, after the last epoch.

    The network in full precision is compared with no estimator: it is a ceiling, not a rival.
    """
    final = _final(rows)
    names = [name for name in dict.fromkeys(row["estimator"] for row in final) if name != "float"]
    return judged(
        [
            {
                "found": paired(final, "accuracy", _is(subject), _is(base)),
                "subject": subject,
                "base": base,
                "quantity": "accuracy",
                "better": "higher",
            }
            for place, subject in enumerate(names)
            for base in names[:place]
        ]
    )


def _is(estimator: str) -> Any:
    return lambda row: row["estimator"] == estimator


def _final(rows: Sequence[Row]) -> list[Row]:
    last = max(row["epoch"] for row in rows)
    return [row for row in rows if row["epoch"] == last]


def card(verdict: Verdict) -> Card:
    """A comparison in words.

    Example:
        >>> one = Verdict("reste", "ste", "accuracy", "higher", 0.01, -0.01, 0.03, 0.2, 3,
        ...               "no evidence")
        >>> card(one).title
        'ReSTE and STE: not separated'
    """
    ours, base = named(verdict.subject), named(verdict.base)
    text = (
        f"Accuracy {verdict.in_points()} percentage points ({ours} minus {base}, paired "
        f"over {verdict.n} seeds, after the last epoch)."
    )
    if verdict.outcome == "no evidence":
        return Card(f"{ours} and {base}: not separated", text)
    word = "above" if verdict.outcome == "gain" else "below"
    return Card(f"{ours} is {word} {base}", text, verdict.outcome)


def named(estimator: str) -> str:
    """An estimator in words."""
    return ESTIMATORS[estimator].title if estimator in ESTIMATORS else estimator


def subtitle(results: Results) -> str:
    """The run in one line."""
    settings, seeds = results.settings, _seed_count(results)
    return (
        f"{settings['model']} on {settings['data']}, 1W/{settings['activation_bits']}A: "
        f"{', '.join(settings['estimator'])}, {seeds} seed{'s' * (seeds != 1)}"
    )


def sections(results: Results) -> Iterator[Section]:
    """The findings, over training, layer by layer and on bits."""
    details = results.details
    packing = details.get("packing")
    measured = [row for row in details["layers"] if row["error"] is not None]
    yield Section("What was found", tuple(_findings(results)), is_brief=True)
    yield Section("Over training", tuple(_curves(results)))
    if measured:
        yield Section("Estimators over training", tuple(_spreads(measured)))
        yield Section("Layer by layer", tuple(_layers(measured, details)))
    if packing:
        yield Section("On bits", tuple(_on_bits(packing)), is_brief=True)
        yield Section("On bits, layer by layer", tuple(_packed_layers(packing)))
    yield Section("What to do next", (Text(tuple(_advice(results))),))


def _seed_count(results: Results) -> int:
    return len({row["seed"] for row in results.rows})


def _findings(results: Results) -> Iterator[Part]:
    judgements = judgements_of(results)
    yield from map(card, judgements)
    if not judgements:
        yield Text(("One estimator only: there is nothing to compare.",))
    yield _last_epoch(results)
    if judgements:
        yield _differences(judgements)


def judgements_of(results: Results) -> list[Verdict]:
    """The comparisons of a run; those of version 0.1 are in its rows alone."""
    if results.verdicts:
        return [Verdict(**one) for one in results.verdicts]
    return verdicts(results.rows)


def _last_epoch(results: Results) -> Table:
    final = _final(results.rows)
    rows = []
    for row in results.summary:
        mine = [one for one in final if one["estimator"] == row["estimator"]]
        rows.append(
            (
                named(row["estimator"]),
                row["accuracy_mean"],
                row["accuracy_ci95"],
                interval(one["estimating_error"] for one in mine).mean,
                interval(one["gradient_instability"] for one in mine).mean,
                row["n"],
            )
        )
    columns = (
        "estimator",
        Column("accuracy", "%", "higher"),
        Column("± 95 %", "%"),
        Column("estimating error", better="lower"),
        "instability",
        "seeds",
    )
    return Table(
        "After the last epoch",
        columns,
        rows,
        note=(
            "Test accuracy of the last epoch, not of the best. The paper's indicators: e, the sum "
            "over layers of ||f(w) - sign(w)||, and s, the sum of var |g|. s grows with the square "
            "of any factor on the gradient, so it compares gain more than unevenness."
        ),
    )


def _differences(judgements: Sequence[Verdict]) -> Table:
    rows = [
        (
            f"{named(one.subject)} - {named(one.base)}",
            one.difference,
            one.half_width,
            one.p,
        )
        for one in judgements
    ]
    columns = (
        "difference",
        Column("accuracy", "points"),
        Column("± 95 %", "%"),
        Column("p (Holm)", digits=3),
    )
    return Table(
        "Differences in accuracy, paired by seed",
        columns,
        rows,
        note="p-values are corrected for the number of differences.",
    )


def _curves(results: Results) -> Iterator[Figure]:
    rows = results.rows
    shown = {
        "accuracy": ("Accuracy on the test split", "accuracy"),
        "estimating_error": ("Estimating error of the weights, e of the paper", "e"),
        "gradient_instability": ("Gradient instability, s of the paper", "s, logarithmic"),
    }
    for metric, (title, label) in shown.items():
        known = [row for row in rows if row[metric] is not None]
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
        means = [interval(values) for _, values in sorted(epochs.items())]
        known = all(not math.isnan(one.half_width) for one in means)
        series.append(
            Series(
                named(estimator),
                sorted(epochs),
                [one.mean for one in means],
                [one.low for one in means] if known else None,
                [one.high for one in means] if known else None,
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
    """The scale-free indicators, which can be compared between layers and estimators."""
    quantities = {
        ("weights", "error"): "Estimating error of the weights: rms of f(w) - sign(w)",
        ("activations", "error"): "Estimating error of the activations",
        ("weights", "dispersion"): "Dispersion of the gradient: std |g| / mean |g|",
        ("weights", "gain"): "Gain on the weights: mean slope",
    }
    for (tensor, quantity), title in quantities.items():
        mine = [row for row in layers if row["tensor"] == tensor]
        chosen = [row for row in mine if row[quantity] is not None]
        if chosen:
            yield _figure(_means(chosen, quantity), "value", title, quantity, float)


def _means(rows: Sequence[Row], quantity: str) -> list[Row]:
    """The mean over layers, a row per estimator, seed and epoch."""
    values: dict[tuple[str, int, int], list[float]] = {}
    for row in rows:
        key = row["estimator"], row["seed"], row["epoch"]
        values.setdefault(key, []).append(row[quantity])
    return [
        {"estimator": estimator, "seed": seed, "epoch": epoch, "value": float(np.mean(mine))}
        for (estimator, seed, epoch), mine in values.items()
    ]


def _layers(layers: Sequence[Row], details: Mapping[str, Any]) -> Iterator[Part]:
    last = max(row["epoch"] for row in layers)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in layers:
        if row["epoch"] == last:
            groups.setdefault((row["layer"], row["tensor"], row["estimator"]), []).append(row)
    quantities = ("error", "gain", "slope_spread", "inside", "beyond", "dispersion", "flipped")
    rows = [
        (layer, tensor, named(estimator), *(_mean(members, name) for name in quantities))
        for (layer, tensor, estimator), members in groups.items()
    ]
    columns: tuple[Column | str, ...] = (
        *("layer", "of", "estimator"),
        Column("error", better="lower", digits=3),
        *(Column(name, digits=3) for name in ("gain", "slope spread")),
        *(Column(name, "%", digits=1) for name in ("inside 0.1", "beyond 1.5")),
        Column("dispersion", digits=3),
        Column("flipped", "%", digits=3),
    )
    yield Table(
        "Indicators of the last update, mean over seeds",
        columns,
        rows,
        note=(
            "error: rms of f(z) - sign(z); gain and slope spread: mean of the slope, and its "
            "deviation over that; inside and beyond: shares of abs(z) <= 0.1 and > 1.5; "
            "dispersion: std |g| / mean |g|; flipped: share of the signs that the update changed."
        ),
    )
    kinds = [
        (one["name"], one["kind"], one["weights"], "1 bit" if one["is_binary"] else "float")
        for one in details["converted"]
    ]
    heads = ("layer", "kind", Column("weights", digits=0), "stored as")
    yield Table("What is binary", heads, kinds)


def _mean(rows: Sequence[Row], quantity: str) -> float | None:
    values = [row[quantity] for row in rows if row[quantity] is not None]
    return float(np.mean(values)) if values else None


def _on_bits(packing: Row) -> Iterator[Part]:
    sizes = packing["sizes"]
    yield Card(
        f"{sizes['bytes_float'] / sizes['bytes_packed']:.1f} times smaller on disk",
        f"{sizes['bytes_float']:,} bytes in floating point, {sizes['bytes_packed']:,} packed. "
        f"Outputs differ by at most {sizes['max_abs_difference']:.1e}; "
        f"{packing['agreement']:.2%} of the examples get the same class.",
        "gain",
    )
    for batch, times in sizes["milliseconds"].items():
        best = min(times["float"], times["channels_last"])
        yield Card(
            f"{best / times['packed']:.1f} times the float speed at {batch.replace('_', ' ')}",
            f"{times['packed']:.3f} ms against {best:.3f} ms of the faster float layout.",
            "gain" if best > 1.05 * times["packed"] else "neutral",
        )
    batches = [name.replace("_", " ") for name in sizes["milliseconds"]]
    yield Table(
        "Time of the whole network",
        ("way to run", *(Column(name, "ms", "lower", 3) for name in batches)),
        [
            [words, *(times[way] for times in sizes["milliseconds"].values())]
            for way, words in WAYS.items()
        ],
        note="Medians, the ways taking turns on this machine.",
    )


def _packed_layers(packing: Row) -> Iterator[Part]:
    columns = (
        *("layer", "runs as"),
        Column("bytes of weights, float", digits=0),
        Column("packed", digits=0),
        "remark",
    )
    rows = [
        (one["name"], one["way"], one["bytes_float"], one["bytes_packed"], one["reason"])
        for one in packing["layers"]
    ]
    yield Table("Layer by layer", columns, rows)
    if packing["notes"]:
        yield Text(tuple(f"{note[0].upper()}{note[1:]}." for note in packing["notes"]))


def _advice(results: Results) -> Iterator[str]:
    if "saved" in results.details:
        saved = results.details["saved"]
        yield (
            f"model.safetensors holds the network of {named(saved['estimator'])}, seed "
            f"{saved['seed']}: the one with the best validation accuracy at the end."
        )
    if "packing" not in results.details:
        yield "Give --pack to store it on bits, and to see how fast and how equal that is."
    if _seed_count(results) < 2:
        yield "One seed cannot tell estimators apart: run --seeds 8 or more."
    for one in judgements_of(results):
        if one.outcome == "no evidence" and one.half_width is not None:
            yield (
                f"Whether {named(one.subject)} differs from {named(one.base)} is not settled: a "
                f"difference beyond {100 * one.largest:.2f} points is unlikely, a smaller one "
                "would need more seeds."
            )
    names = {row["estimator"] for row in results.rows}
    if "reste" in names and not names & {"ste_gain", "wide_ste"}:
        yield (
            "Add the controls wide_ste (where ReSTE starts) and ste_gain (its gain on the weights "
            "without its shape) to see what of a difference is ReSTE's shape."
        )
