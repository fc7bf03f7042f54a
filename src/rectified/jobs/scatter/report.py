"""The page of `rectified scatter`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from rectified.jobs.job import Results
from rectified.jobs.scatter.cases import PIXELS, networks
from rectified.report import (
    Column,
    Figure,
    Part,
    Section,
    Series,
    Table,
    Text,
    Verdict,
    lines,
)
from rectified.report.drawing import COLOURS, Drawing, Sheet, figure
from rectified.scattering import FilterBank
from rectified.seeds import generator
from rectified.statistics import interval

Row = Mapping[str, Any]

CLAIMS = {  # quantity -> what is claimed
    "frame_bound": "No layer expands: a pure tone where it passes most",
    "tone_identity": "A pure tone's features hold what the Littlewood-Paley sum says",
    "adversarial_ratio": "The worst pair that gradient ascent found, against the constant",
    "equivariance_error": "Features move with their picture, exactly",
    "translation": "Features of a moved picture, against the bound of each depth",
    "translation_by_decay": "The same, against the published bound",
    "deformation_band_limited": "Band-limited signals, deformed",
    "deformation_band_limited_modulated": "Band-limited signals, deformed and modulated",
    "deformation_cartoon": "Cartoons, deformed",
    "deformation_lipschitz": "Lipschitz signals, deformed",
    "deformation_pictures": "Pictures of the data, deformed",
    "energy_put_out": "Features hold no more energy than their pictures",
    "pruning_error": "The error of dropping weak paths, against the guaranteed",
    "deformation": "Signals move no further than their class allows",
    "energy_identity": "Energy is conserved",
    "energy_led_on": "Energy that is led on falls with depth",
}
SIDE = 32  # of the grid on which filters are drawn
CLASSES = ("band_limited", "band_limited_modulated", "cartoon", "lipschitz")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def violations(rows: Sequence[Row]) -> list[Row]:
    """The rows whose measured value exceeds its bound, or is no number."""
    return [row for row in rows if row["bound"] is not None and not row["measured"] <= row["bound"]]


def _worst(results: Results) -> dict[str, float]:
    worst: dict[str, float] = {}
    for row in results.summary:
        if row["worst_ratio"] is not None:
            name = row["quantity"]
            worst[name] = max(worst.get(name, 0.0), row["worst_ratio"])
    return {name: worst[name] for name in CLAIMS if name in worst}


def _named(row: Row) -> str:
    return (
        f"{row['case']}, depth {row['depth']}, {row['quantity']}: {row['measured']:.6g} > "
        f"{row['bound']:.6g}"
    )


def _accuracies(rows: Sequence[Row]) -> list[tuple[str, float]]:
    names = dict.fromkeys(row["case"] for row in rows if row["quantity"] == "accuracy")
    return [
        (name, interval(row["measured"] for row in rows if row["case"] == name).mean)
        for name in names
    ]


def subtitle(results: Results) -> str:
    """The run in one line."""
    seeds = sum(row["case"] == "pixels" for row in results.rows)
    checked = len(results.settings["networks"])
    return f"{checked} networks, {results.settings['data']}, {seeds} seed{'s' * (seeds != 1)}"


def sections(results: Results) -> Iterator[Section]:
    """The findings, then every claim."""
    yield Section("What was found", tuple(_findings(results)), is_brief=True)
    banks = first_banks(results.settings)
    if banks:
        yield Section("Where the filters look", (_tilings(banks),))
        yield Section("Translations, depth by depth", tuple(_translations(results)))
        yield Section("Deformations", tuple(_deformations(results)))
        yield Section("Energy", tuple(_energy(results)))
        yield Section("Every claim, case by case", (_ratios(results), _precision()))


def first_banks(settings: Row) -> dict[str, FilterBank]:
    """The first bank of every network that a run with these settings checks, on a small grid."""
    return {
        name: layers[0].bank((SIDE, SIDE))
        for name, layers in networks(generator(settings["seed"] or 0, "frames")).items()
        if name in settings["networks"]
    }


def _findings(results: Results) -> Iterator[Part]:
    rows = results.rows
    bad, count = violations(rows), sum(row["bound"] is not None for row in rows)
    if bad:
        named = "; ".join(_named(row) for row in bad[:3])
        yield Verdict(f"{len(bad)} of {count} bounds are broken", named, "warning")
    elif count:
        yield Verdict(
            f"All {count} measured values are within their bounds",
            "Each inequality was measured in float64 on the periodic grid, where it is exact.",
            "gain",
        )
    accuracy = dict(_accuracies(rows))
    gained = accuracy["scattering order 2"] - accuracy["pixels"]
    yield Verdict(
        f"{accuracy['scattering order 2']:.1%} accuracy, {100 * gained:+.1f} points against pixels",
        "Test accuracy of a linear (ridge) classifier; no filter was learnt.",
        "gain" if gained > 0 else "loss",
    )
    columns = ("features", Column("accuracy", "%", "higher"))
    yield Table("Linear classifier", columns, list(accuracy.items()))
    if count:
        worst = [(CLAIMS[name], ratio) for name, ratio in _worst(results).items()]
        yield Table(
            "The worst ratio of every claim",
            ("claim", "measured / bound"),
            worst,
            note="1 is the limit. An adversary should come near it; a class bound need not.",
        )


def _tilings(banks: Mapping[str, FilterBank]) -> Figure:
    """The largest response at every frequency, zero in the middle: one tile per filter."""
    tiles = {name: _tile(bank) for name, bank in banks.items()}
    side, gap = next(iter(tiles.values())).shape[0], 6

    def draw(axes: Any, sheet: Sheet) -> Sequence[Any]:
        from matplotlib.patches import Patch

        across = 3 if sheet.width > 400 else 2
        down = math.ceil(len(tiles) / across)
        sheet_ = np.full((down * (side + gap), across * (side + gap)), np.nan)
        for place, (name, tile) in enumerate(tiles.items()):
            top, left = place // across * (side + gap) + gap, place % across * (side + gap)
            sheet_[top : top + side, left : left + side] = tile
            axes.text(left, top - 1, name[: sheet.width // (across * 8)], fontsize=8)
        axes.imshow(sheet_, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
        axes.set_axis_off()
        return [Patch(color=COLOURS[0])]

    names = ", ".join(
        f"{name}: {len(bank.filters)} filters, A = {bank.lower:.3f}, B = {bank.upper:.3f}"
        for name, bank in banks.items()
    )
    return figure(
        Drawing(draw, ["close to 1 (white: 0)"], ""),
        lambda sheet: sheet.width if sheet.width > 400 else 2 * sheet.width,
        title="Littlewood-Paley pictures of the first layers",
        alt=f"The largest filter response at every frequency. {names}.",
        note=f"The largest squared response at each frequency, zero in the middle. {names}.",
    )


def _tile(bank: FilterBank) -> np.ndarray:
    energy = np.concatenate(
        [bank.output[None].abs().square().numpy(), bank.filters[:, 0].abs().square().numpy()]
    )
    return np.fft.fftshift(energy.max(0))


def _translations(results: Results) -> Iterator[Part]:
    chosen = [row for row in results.rows if row["quantity"] == "translation"]
    columns = ("network", "depth", "moved", "bound", "share of the bound")
    table = [
        (
            row["case"],
            row["depth"],
            row["measured"],
            row["bound"],
            row["measured"] / row["bound"],
        )
        for row in chosen
    ]
    names = list(dict.fromkeys(row["case"] for row in chosen))
    series = [_by_depth(chosen, name, "measured", name) for name in names]
    series.append(_by_depth(chosen, names[0], "bound", f"bound, {names[0]}"))
    yield lines(
        series,
        title="How far features move with a picture that moves by 4 points",
        x_label="depth",
        y_label="distance / norm of the picture",
        alt="The distance falls with depth for most networks; every one is below its bound.",
        note="The largest over the pictures.",
    )
    yield Table("Each depth against its own bound", columns, table)


def _by_depth(rows: Sequence[Row], case: str, key: str, label: str) -> Series:
    mine = sorted((row for row in rows if row["case"] == case), key=lambda row: row["depth"])
    return Series(label, [row["depth"] for row in mine], [row[key] for row in mine])


def _deformations(results: Results) -> Iterator[Part]:
    rows = results.rows
    table = []
    for name in CLASSES:
        signal = _curve(rows, f"signal {name}", "deformation")
        cases = list(
            dict.fromkeys(r["case"] for r in rows if r["quantity"] == f"deformation_{name}")
        )
        if not signal or not cases:
            continue
        curves = {case: _curve(rows, case, f"deformation_{name}") for case in cases}
        yield _log_figure(name, signal, curves)
        table.append((name.replace("_", " "), slope(_measured(signal)), *_spread(curves)))
    yield Table(
        "Growth with |tau|: exponent",
        (
            "signal",
            *(
                Column(name, digits=2)
                for name in ("of the signal", "of features, smallest", "largest")
            ),
        ),
        table,
        note="The theorems give 1, 1, 1/2 and 1 as the smallest exponents that features may have.",
    )


def _curve(rows: Sequence[Row], case: str, quantity: str) -> list[Row]:
    """Rows of one case, in the order of the sizes of the deformation."""
    return [row for row in rows if row["case"] == case and row["quantity"] == quantity]


def _measured(curve: Sequence[Row]) -> list[float]:
    return [row["measured"] for row in curve]


def _spread(curves: Mapping[str, Sequence[Row]]) -> tuple[float, float]:
    slopes = [slope(_measured(curve)) for curve in curves.values()]
    return min(slopes), max(slopes)


def slope(measured: Sequence[float]) -> float:
    """The exponent of growth with |tau|, by least squares on logarithms.

    Example:
        >>> round(slope([3 * size**0.5 for size in PIXELS]), 6)
        0.5
    """
    return float(np.polyfit(np.log(PIXELS), np.log(measured), 1)[0])


def _log_figure(name: str, signal: Sequence[Row], curves: Mapping[str, Sequence[Row]]) -> Figure:
    series = {
        "bound of the class": [row["bound"] for row in signal],
        "the signal": _measured(signal),
        **{case: _measured(curve) for case, curve in curves.items()},
    }

    def draw(axes: Any, sheet: Sheet) -> Sequence[Any]:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for values, colour, marker in zip(
            series.values(), cycle(COLOURS), cycle(_MARKERS), strict=False
        ):
            axes.plot(PIXELS, values, color=colour, marker=marker, markersize=5, linewidth=1.4)
        axes.set_xticks(PIXELS, [f"{size:g}" for size in PIXELS])
        axes.set_xticks([], minor=True)
        # the default writes powers as mathematical markup, which the page shows as it stands
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda *_: "")
        return list(axes.lines)

    words = name.replace("_", " ")
    return figure(
        Drawing(draw, list(series), "largest displacement, in points", "distance"),
        lambda sheet: sheet.height,
        title=f"Deformed signals: {words}",
        alt=f"{words}: every network's features move less than the signal, and the signal less "
        "than the bound of its class, at each of five sizes.",
        note="Both axes logarithmic.",
    )


def _energy(results: Results) -> Iterator[Part]:
    rows = [row for row in results.rows if row["quantity"] == "energy_put_out"]
    shares: dict[str, list[float]] = {}
    for row in rows:
        before = sum(shares.get(row["case"], []))
        shares.setdefault(row["case"], []).append(row["measured"] - before)
    depth = max(map(len, shares.values()))
    yield Table(
        "Share of the pictures' energy in the features of each depth",
        ("network", *(Column(f"depth {n}", "%") for n in range(depth)), Column("in all", "%")),
        [(case, *one, sum(one)) for case, one in shares.items()],
        note="The rest is in maps beyond the last depth, or was lost in the non-linearity.",
    )
    yield _stacked(shares, depth)
    led = [row for row in results.rows if row["quantity"] == "energy_led_on"]
    yield Table(
        "One dimension, tight banks, modulus, no pooling: share of the energy that is led on",
        ("bank", "depth", "measured", "bound"),
        [
            (row["case"].removeprefix("energy "), row["depth"], row["measured"], row["bound"])
            for row in led
        ],
        note="Band-limited noise. Weyl-Heisenberg tiles leave no gap at zero: its bound is 1.",
    )


def _stacked(shares: Mapping[str, Sequence[float]], depth: int) -> Figure:
    names = [f"depth {n}" for n in range(depth)]

    def draw(axes: Any, sheet: Sheet) -> Sequence[Any]:
        left = np.zeros(len(shares))
        for n, colour in zip(range(depth), cycle(COLOURS), strict=False):
            values = np.array([one[n] if n < len(one) else 0.0 for one in shares.values()])
            axes.barh(range(len(shares)), values, 0.7, left, color=colour)
            left += values
        labels = [name[: sheet.label_length] for name in shares]
        axes.set_yticks(range(len(shares)), labels)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        return list(axes.containers)

    return figure(
        Drawing(draw, names, "share of the energy"),
        lambda _: 40 + 24 * len(shares),
        title="Where the energy of the pictures is",
        alt="; ".join(f"{case}: {sum(one):.1%} in all" for case, one in shares.items()),
        note="",
    )


def _ratios(results: Results) -> Table:
    rows = [
        (row["case"], row["quantity"], row["worst_ratio"])
        for row in results.summary
        if row["worst_ratio"] is not None
    ]
    columns = ("case", "quantity", "measured / bound, at worst")
    return Table("Every claim", columns, rows)


def _precision() -> Text:
    return Text(
        (
            "Norms are sums over the grid. Bounds carry 1e-9 for rounding, identities are held to "
            "1e-11, class bounds of signals to 1e-6, since a sum over the grid is a quadrature.",
        )
    )
