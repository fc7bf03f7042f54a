"""Layers and activations at the end: weights kept and dead neurons, as figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rectified.jobs.prune.comparisons import Row, arm_name
from rectified.report import Column, Figure, Part, Table, bars
from rectified.report.page import Cell

Means = Mapping[tuple[str, str], Mapping[str, float]]  # (score, arm) -> layer -> mean over seeds


def parts(rows: Sequence[Row]) -> tuple[Part, ...]:
    """Figures and tables.

    Args:
        rows: `layers` of a run's details.
    """
    density = _means(rows, "layer", lambda row: row["kept"] / row["weights"])
    rate = _means(rows, "site", lambda row: row["dynamic"])
    title = "Dynamic dead neuron rate at the end"
    return (
        _figure(density, "Kept weights at the end", "density"),
        _figure(rate, title, "dynamic dead neuron rate"),
        _layer_table(rows),
        _site_table(rows),
    )


def _means(rows: Sequence[Row], kind: str, value: Callable[[Row], float | None]) -> Means:
    found: dict[tuple[str, str], dict[str, list[float | None]]] = {}
    for row in rows:
        if row["kind"] == kind:
            arm = found.setdefault((row["score"], row["ap"]), {})
            arm.setdefault(row["name"], []).append(value(row))
    return {
        arm: {name: float(np.mean(np.array(v, np.float64))) for name, v in names.items()}
        for arm, names in found.items()
    }


def _figure(arms: Means, title: str, label: str) -> Figure:
    names = list(next(iter(arms.values())))
    several = len({score for score, _ in arms}) > 1
    groups = {
        f"{score}, {arm_name(ap)}" if several else arm_name(ap): [one[name] for name in names]
        for (score, ap), one in arms.items()
    }
    return bars(
        names, groups, title=title, x_label=label, x_percent=True, alt=f"{title}, layer by layer."
    )


def _layer_table(rows: Sequence[Row]) -> Table:
    weights, kept = (
        _means(rows, "layer", lambda row, q=quantity: row[q])  # type: ignore[misc]
        for quantity in ("weights", "kept")
    )
    table = [
        (name, f"{score}, {arm_name(ap)}", count, left, left / count)
        for (score, ap), names in weights.items()
        for name, count in names.items()
        for left in [kept[score, ap][name]]
    ]
    columns = (
        "layer",
        "arm",
        Column("weights", digits=0),
        Column("kept", digits=0),
        Column("density", "%", digits=2),
    )
    return Table("Weights by layer, mean over seeds", columns, table)


def _site_table(rows: Sequence[Row]) -> Table:
    rates = ("dynamic", "never_fires", "masked", "constant")
    neurons, *shares = (
        _means(rows, "site", lambda row, q=quantity: row[q])  # type: ignore[misc]
        for quantity in ("neurons", *rates)
    )
    table: list[tuple[Cell, ...]] = [
        (name, f"{score}, {arm_name(ap)}", count, *(share[score, ap][name] for share in shares))
        for (score, ap), names in neurons.items()
        for name, count in names.items()
    ]
    columns: tuple[Column | str, ...] = (
        "activation",
        "arm",
        Column("neurons", digits=0),
        *(Column(rate.replace("_", " "), "%", "lower", 1) for rate in rates),
    )
    return Table(
        "Dead neurons by activation, mean over seeds",
        columns,
        table,
        note=(
            "dynamic: how often a neuron that fires at all is zero; never fires: zero on every "
            "example; masked: all incoming weights pruned; constant: fires, always at the same "
            "value."
        ),
    )
