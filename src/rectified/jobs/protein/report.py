"""The findings of a run of `rectified protein`, and its page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rectified.jobs.job import Results
from rectified.jobs.protein.places import point_name, training_name
from rectified.report import (
    Column,
    Figure,
    Part,
    Section,
    Series,
    Structures,
    Table,
    Text,
    lines,
)
from rectified.report import Verdict as Card
from rectified.report.drawing import Drawing, Sheet, figure
from rectified.statistics import Interval, Verdict, interval
from rectified.statistics import verdicts as judged

_NOTHING = "\N{EN DASH}"
FEW = 10  # steps that a reflow is judged at, where they were measured
MEASURES = {  # of every sample -> what it is, and how it is written
    "ca_bond_valid": ("CA-CA within 3.8 ± 0.1 Å", ".1%"),
    "ca_bond_below": ("CA-CA below 3.902 Å", ".1%"),
    "peptide_valid": ("C-N within 1.329 ± 0.1 Å", ".1%"),
    "peptide_bond": ("mean C-N, Å", ".3f"),
    "ca_c_n": ("CA-C-N, degrees", ".1f"),
    "c_n_ca": ("C-N-CA, degrees", ".1f"),
    "trans": ("trans peptide bonds", ".1%"),
    "positive_phi": ("phi above 0", ".1%"),
    "clashes_per_100": ("clashes per 100 residues", ".2f"),
    "helix": ("helix", ".1%"),
    "strand": ("strand", ".1%"),
    "radius_of_gyration": ("radius of gyration, Å", ".1f"),
}

Details = Mapping[str, Any]
Point = Mapping[str, Any]


def flow_name(number: int) -> str:
    """The name of a round.

    Example:
        >>> flow_name(1), flow_name(2), flow_name(3)
        ('first flow', 'reflow', 'reflow 2')
    """
    if number == 1:
        return "first flow"
    return "reflow" if number == 2 else f"reflow {number - 1}"


def verdicts(
    rounds: int, steps: Sequence[int], lengths: Sequence[int], points: Sequence[Point]
) -> list[Verdict]:
    """Verdicts on reflow: few steps, and clashes; paired by the noise that samples began from."""
    many, few = max(steps), _few(steps)
    comparisons: list[dict[str, Any]] = []
    if rounds < 2 or few == many:
        return []
    for length in lengths:
        ours = _of(points, rounds, few, length)
        for base_steps in (few, many):
            theirs = _of(points, 1, base_steps, length)
            names = {
                "subject": f"{few} steps after reflow, {length} residues",
                "base": f"{base_steps} before",
            }
            measure = {"quantity": "ca_bond_valid", "better": "higher"}
            comparisons.append(
                {"found": difference(ours, theirs, "ca_bond_valid"), **names, **measure}
            )
        measure = {"quantity": "clashes_per_100", "better": "lower"}
        found = difference(ours, _of(points, 1, many, length), "clashes_per_100")
        comparisons.append({"found": found, **names, **measure})
    return judged(comparisons)


def _few(steps: Sequence[int]) -> int:
    return FEW if FEW in steps else min(steps)


def judgements_of(results: Results) -> list[Verdict]:
    """The comparisons of a run; those of version 0.1 are in its points alone."""
    if results.verdicts:
        return [Verdict(**one) for one in results.verdicts]
    settings = results.settings
    shape = settings["rounds"], settings["steps"], settings["lengths"]
    return verdicts(*shape, results.details["points"])


def subtitle(results: Results) -> str:
    """The run in one line."""
    settings = results.settings
    lengths = ", ".join(map(str, settings["lengths"]))
    origin = settings["data"] or settings["checkpoint"]
    return f"preset {settings['preset']}, {origin}, {lengths} residues"


def sections(results: Results) -> Iterator[Section]:
    """The findings, beside real chains, and the backbones themselves."""
    details = results.details
    yield Section("What was found", tuple(_findings(results)), is_brief=True)
    yield Section("Validity against steps", tuple(_curves(results)))
    yield Section("Backbones", tuple(_structures(results)))
    yield Section("Beside real chains", tuple(_tables(details)))
    yield Section("Ramachandran plots", tuple(_ramachandran(details)))
    yield Section("Training", tuple(_training(results)))


def _findings(results: Results) -> Iterator[Part]:
    yield from _cards(results)
    yield _overview(results)
    refused = results.details["refused"]
    if refused["count"]:
        first = "; ".join(refused["first"][:3])
        yield Text((f"{refused['count']} chains could not be used, among them: {first}.",))


def _overview(results: Results) -> Table:
    rows: list[tuple[Any, ...]] = [
        (
            flow_name(row["round"]),
            row["length"],
            row["steps"],
            row["ca_bond_valid_mean"],
            row["clashes_per_100_mean"],
            row["helix_mean"],
            row["strand_mean"],
            row["seconds_per_sample_mean"],
        )
        for row in results.summary
    ]
    for length, real in results.details["real"].items():
        means = {name: interval(real["values"][name]).mean for name in MEASURES}
        shares = (means[name] for name in ("ca_bond_valid", "clashes_per_100", "helix", "strand"))
        rows.append(("real chains", int(length), None, *shares, None))
    columns = (
        *("flow", "length", "steps"),
        Column("CA-CA valid", "%", "higher", 1),
        Column("clashes per 100", "", "lower", 2),
        Column("helix", "%", digits=1),
        Column("strand", "%", digits=1),
        Column("time per sample", "s", "lower", 3),
    )
    return Table(
        "Every flow, length and number of steps",
        columns,
        rows,
        note="Means over samples and seeds. Valid: within 3.8 ± 0.1 Å, both ways.",
    )


def _cards(results: Results) -> Iterator[Card]:
    """Cards: the first flow's validity, what reflow did to few steps, and what else it changed."""
    settings, details = results.settings, results.details
    many, few, last = max(settings["steps"]), _few(settings["steps"]), settings["rounds"]
    judgements = judgements_of(results)
    for length in settings["lengths"]:
        best = _of(details["points"], 1, many, length)
        yield _validity(best, details["real"].get(str(length)), many)
        mine = [one for one in judgements if one.subject.endswith(f" {length} residues")]
        yield from (_compared(one) for one in mine if one.quantity == "ca_bond_valid")
        for one in mine:
            if one.quantity == "clashes_per_100":
                ours = _of(details["points"], last, few, length)
                yield _folds(ours, best, details["real"].get(str(length)), one)


def _of(points: Sequence[Point], number: int, steps: int, length: int) -> list[Point]:
    """The points of all seeds."""
    return [
        point
        for point in points
        if (point["round"], point["steps"], point["length"]) == (number, steps, length)
    ]


def values(points: Sequence[Point], name: str) -> list[float]:
    """A measure of every sample of some points."""
    return [value for point in points for value in point["values"][name]]


def difference(ours: Sequence[Point], theirs: Sequence[Point], name: str) -> Interval:
    """The mean over samples of a measure's difference; sample i of both began from one noise."""
    pairs = zip(values(ours, name), values(theirs, name), strict=True)
    return interval(a - b for a, b in pairs)


def _validity(points: Sequence[Point], real: Mapping[str, Any] | None, steps: int) -> Card:
    valid = interval(values(points, "ca_bond_valid"))
    beside = ""
    if real is not None:
        beside = f" Real chains: {interval(real['values']['ca_bond_valid']).mean:.1%}."
    length = points[0]["length"]
    return Card(
        f"{valid.mean:.1%} ± {100 * valid.half_width:.1f} valid at {steps} steps",
        f"CA-CA distances within 3.8 ± 0.1 Å, mean over {valid.n} samples of {length} residues "
        f"of the first flow, with its 95 % interval.{beside}",
    )


def _compared(verdict: Verdict) -> Card:
    return Card(
        f"{verdict.in_points()} points: {verdict.subject} against {verdict.base}",
        f"Difference of the valid CA-CA distances over {verdict.n} samples from the same noise, "
        "with its 95 % interval.",
        "neutral" if verdict.outcome == "no evidence" else verdict.outcome,
    )


def _folds(
    ours: Sequence[Point],
    theirs: Sequence[Point],
    real: Mapping[str, Any] | None,
    clashes: Verdict,
) -> Card:
    """The cost of reflow: secondary structure, clashes, diversity."""
    parts = []
    for name, word in (("helix", "helix"), ("strand", "strand"), ("clashes_per_100", "clashes")):
        before, after = interval(values(theirs, name)).mean, interval(values(ours, name)).mean
        beside = f" (real {_written(name, interval(real['values'][name]).mean)})" if real else ""
        parts.append(f"{word} {_written(name, before)} to {_written(name, after)}{beside}")
    scores = [interval(point["tm_score"] for point in points).mean for points in (theirs, ours)]
    parts.append(f"mean TM-score of pairs {scores[0]:.2f} to {scores[1]:.2f}")
    tone = "warning" if clashes.outcome == "loss" else "neutral"
    return Card("What else reflow changed", "; ".join(parts) + ".", tone)


def _written(name: str, value: float) -> str:
    return format(value, MEASURES[name][1])


def _curves(results: Results) -> Iterator[Part]:
    config, details = results.settings, results.details
    for length in config["lengths"]:
        for name in ("ca_bond_valid", "peptide_valid"):
            yield _curve(config, details, length, name)
        yield _speed(config, details, length)


def _curve(config: Mapping[str, Any], details: Details, length: int, name: str) -> Figure:
    series = []
    steps = sorted(config["steps"])
    for number in range(1, config["rounds"] + 1):
        found = [
            interval(values(_of(details["points"], number, one, length), name)) for one in steps
        ]
        series.append(
            Series(
                flow_name(number),
                steps,
                [one.mean for one in found],
                [one.low for one in found],
                [one.high for one in found],
            )
        )
    real = details["real"].get(str(length))
    if real is not None:
        mean = interval(real["values"][name]).mean
        series.append(Series("real chains", steps, [mean] * len(steps)))
    words = MEASURES[name][0]
    return lines(
        series,
        title=f"{words}, {length} residues",
        x_label="steps (evaluations of the network)",
        y_label="share of the bonds",
        x_scale="log",
        y_percent=True,
        alt="; ".join(
            f"{one.label}: "
            + ", ".join(
                f"{y:.1%} at {x}" for x, y in zip(one.x, one.y, strict=True) if y is not None
            )
            for one in series
        ),
        note="Mean over samples, with its 95 % interval.",
    )


def _speed(config: Mapping[str, Any], details: Details, length: int) -> Table:
    rows = []
    for number in range(1, config["rounds"] + 1):
        for steps in config["steps"]:
            points = _of(details["points"], number, steps, length)
            seconds = interval(point["seconds_per_sample"] for point in points).mean
            rows.append((flow_name(number), steps, seconds))
    return Table(
        f"Time per sample, {length} residues",
        ("flow", "steps", Column("time", "s", "lower", 4)),
        rows,
        note="Wall time of the samples of a point over their number, made in batches.",
    )


def _structures(results: Results) -> Iterator[Part]:
    shown = results.details["shown"]
    first = [row for row in results.rows if row["seed"] == results.rows[0]["seed"]]
    for row in first:
        if point_name(row) not in shown:
            continue
        flow = flow_name(row["round"]).capitalize()
        yield Structures(
            f"{flow}, {row['steps']} steps, {row['length']} residues",
            {f"sample {n}": text for n, text in enumerate(shown[point_name(row)])},
            alt="a generated backbone, coloured from its N- to its C-terminus",
            note="Drag to turn. The first samples, not chosen; more of them are in samples/.",
        )


def _tables(details: Details) -> Iterator[Part]:
    by_length: dict[int, list[Point]] = {}
    for point in details["points"]:
        by_length.setdefault(point["length"], []).append(point)
    for length, points in by_length.items():
        real = details["real"].get(str(length))
        places = sorted({(p["round"], -p["steps"]) for p in points})
        heads = [f"{flow_name(number)}, {-steps}" for number, steps in places]
        columns = ("measure", *heads, *(["real chains"] if real else []))
        rows: list[tuple[str, ...]] = []
        for name, (words, _) in MEASURES.items():
            cells = []
            for number, steps in places:
                found = interval(values(_of(details["points"], number, -steps, length), name))
                cells.append(_with_half_width(name, found))
            if real:
                cells.append(_with_half_width(name, interval(real["values"][name])))
            rows.append((words, *cells))
        for key, words in _SHAPES.items():
            cells = []
            for number, steps in places:
                chosen = [
                    p[key] for p in _of(details["points"], number, -steps, length) if key in p
                ]
                cells.append(f"{interval(chosen).mean:.2f}" if chosen else _NOTHING)
            if real:
                cells.append(f"{real[key]:.2f}" if key in real else _NOTHING)
            rows.append((words, *cells))
        yield Table(
            f"{length} residues",
            columns,
            rows,
            note="Mean over samples ± half of the 95 % interval. Real chains: windows of this "
            "length of chains that were held out; secondary structure by P-SEA.",
        )


_SHAPES = {
    "tm_score": "mean TM-score of pairs",
    "clusters": "clusters for each sample",
    "ramachandran_distance": "distance of Ramachandran plots from the real",
    "designable": "designable",
}


def _with_half_width(name: str, found: Interval) -> str:
    how = MEASURES[name][1]
    if math.isnan(found.half_width):
        return format(found.mean, how)
    if how.endswith("%"):
        return f"{100 * found.mean:.1f} ± {100 * found.half_width:.1f} %"
    return f"{found.mean:{how}} ± {found.half_width:{how}}"


def _ramachandran(details: Details) -> Iterator[Part]:
    for length in sorted({point["length"] for point in details["points"]}):
        maps: dict[str, np.ndarray] = {}
        real = details["real"].get(str(length))
        if real:
            maps["real chains"] = np.array(real["ramachandran"])
        points = [point for point in details["points"] if point["length"] == length]
        first = points[0]["seed"]
        for number in sorted({point["round"] for point in points}):
            chosen = [p for p in points if p["round"] == number and p["seed"] == first]
            for point in (max(chosen, key=_steps), min(chosen, key=_steps)):
                maps[f"{flow_name(number)}, {point['steps']} steps"] = np.array(
                    point["ramachandran"]
                )
        yield _heat_maps(maps, length)


def _steps(point: Point) -> int:
    return int(point["steps"])


def _heat_maps(maps: Mapping[str, np.ndarray], length: int) -> Figure:
    """Squares of 15 degrees side by side: phi to the right, psi upwards."""
    side, gap = next(iter(maps.values())).shape[0], 4

    def draw(axes: Any, sheet: Sheet) -> Sequence[Any]:
        from matplotlib.patches import Patch

        across = 3 if sheet.width > 400 else 2
        down = math.ceil(len(maps) / across)
        whole = np.full((down * (side + gap), across * (side + gap)), np.nan)
        for place, (name, cells) in enumerate(maps.items()):
            top, left = place // across * (side + gap) + gap, place % across * (side + gap)
            whole[top : top + side, left : left + side] = np.sqrt(cells.T[::-1])
            axes.text(left, top - 1, name, fontsize=8)
        axes.imshow(whole, cmap="Blues", interpolation="nearest", aspect="equal")
        axes.set_axis_off()
        return [Patch(color="#0b5fa5")]

    def height(sheet: Sheet) -> int:
        across = 3 if sheet.width > 400 else 2
        return math.ceil(len(maps) / across) * sheet.width // across + 20

    return figure(
        Drawing(draw, ["many residues (root scale)"], ""),
        height,
        title=f"Torsions of the backbone, {length} residues",
        alt="Torsions phi and psi of " + ", ".join(maps),
        note="phi to the right and psi upwards, each from -180 to 180 degrees.",
    )


def _training(results: Results) -> Iterator[Part]:
    details = results.details
    for seed, number in dict.fromkeys((row["seed"], row["round"]) for row in results.rows):
        losses = details["losses"].get(training_name(number, seed), [])
        if len(losses) > 1:
            yield lines(
                [Series("loss", list(range(1, len(losses) + 1)), losses)],
                title=f"{flow_name(number).capitalize()}, seed {seed}",
                x_label="epoch",
                y_label="mean loss",
                alt=f"The loss goes from {losses[0]:.2f} to {losses[-1]:.2f}.",
            )
    chains, refused = details["chains"], details["refused"]
    words = [
        f"{chains['train']} chains were learnt from, {chains['held_out']} held out; the network "
        f"has {details['parameters']:,} parameters. The last part of the work took "
        f"{details['seconds']:.0f} s."
    ]
    if refused["count"]:
        words.append(f"{refused['count']} files or chains could not be used; the first:")
        words += refused["first"]
    yield Text(tuple(words))
