"""What `rectified protein` says: a page for people, and a few lines for the terminal."""

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
    Structures,
    Table,
    Text,
    Verdict,
    lines,
    render,
)
from rectified.report.drawing import Drawing, Sheet, figure
from rectified.statistics import Interval, interval

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

Results = Mapping[str, Any]
Details = Mapping[str, Any]
Point = Mapping[str, Any]


def flow_name(number: int) -> str:
    """What a round is called.

    Example:
        >>> flow_name(1), flow_name(2), flow_name(3)
        ('first flow', 'reflow', 'reflow 2')
    """
    if number == 1:
        return "first flow"
    return "reflow" if number == 2 else f"reflow {number - 1}"


def text(results: Results, details: Details) -> str:
    """A short table for the terminal, and the comparisons in words."""
    said = [
        f"{'flow':<12}{'length':>7}{'steps':>7}{'CA-CA valid':>13}{'clashes/100':>13}"
        f"{'helix':>8}{'strand':>8}{'s a sample':>12}"
    ]
    for row in results["summary"]:
        said.append(
            f"{flow_name(row['round']):<12}{row['length']:>7}{row['steps']:>7}"
            f"{row['ca_bond_valid_mean']:>13.1%}{row['clashes_per_100_mean']:>13.2f}"
            f"{row['helix_mean']:>8.1%}{row['strand_mean']:>8.1%}"
            f"{row['seconds_per_sample_mean']:>12.3f}"
        )
    for length, real in details["real"].items():
        means = {name: interval(real["values"][name]).mean for name in MEASURES}
        said.append(
            f"{'real chains':<12}{length:>7}{'':>7}{means['ca_bond_valid']:>13.1%}"
            f"{means['clashes_per_100']:>13.2f}{means['helix']:>8.1%}{means['strand']:>8.1%}"
        )
    said += [f"\n{one.title}\n  {one.text}" for one in _verdicts(results, details)]
    if details["refused"]["count"]:
        said.append(f"\n{details['refused']['count']} chains could not be used, among them:")
        said += [f"  {line}" for line in details["refused"]["first"][:3]]
    return "\n".join(said)


def page(results: Results, details: Details) -> str:
    """The report as one HTML page."""
    return render(Page("Protein report", subtitle(results), sections(results, details)))


def subtitle(results: Results) -> str:
    """What was run, in one line."""
    config = results["config"]
    lengths = ", ".join(map(str, config["lengths"]))
    return (
        f"preset {config['preset']}, {config['data'] or config['checkpoint']}, {lengths} residues"
    )


def sections(results: Results, details: Details) -> tuple[Section, ...]:
    """The parts of the report, for a page of its own or one over several runs."""
    return (
        Section("What was found", tuple(_findings(results, details))),
        Section("Validity against steps", tuple(_curves(results, details))),
        Section("Backbones", tuple(_structures(details))),
        Section("Beside real chains", tuple(_tables(details))),
        Section("Ramachandran plots", tuple(_ramachandran(details))),
        Section("Training", tuple(_training(results, details))),
        Section("How this was made", tuple(_origin(results))),
    )


def _findings(results: Results, details: Details) -> Iterator[Part]:
    yield from _verdicts(results, details)
    rows = [
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
        for row in results["summary"]
    ]
    columns = (
        *("flow", "length", "steps", "CA-CA valid", "clashes per 100", "helix", "strand"),
        "seconds a sample",
    )
    formats = {"CA-CA valid": ".1%", "clashes per 100": ".2f", "helix": ".1%", "strand": ".1%"}
    formats["seconds a sample"] = ".3f"
    yield Table(
        "Every flow, length and number of steps",
        columns,
        rows,
        note="Means over samples and seeds. Valid: within 3.8 ± 0.1 Å, both ways.",
        formats=formats,
    )


def _verdicts(results: Results, details: Details) -> Iterator[Verdict]:
    """What reflow did to few steps, and what else it changed."""
    config = results["config"]
    many = max(config["steps"])
    few = FEW if FEW in config["steps"] else min(config["steps"])
    last = config["rounds"]
    for length in config["lengths"]:
        best = _of(details, 1, many, length)
        yield _validity(best, details["real"].get(str(length)), many)
        if last < 2 or few == many:
            continue
        ours, theirs = _of(details, last, few, length), _of(details, 1, few, length)
        yield _compared(ours, theirs, f"{few} steps after reflow against {few} before")
        yield _compared(ours, best, f"{few} steps after reflow against {many} before")
        yield _folds(ours, best, details["real"].get(str(length)))


def _of(details: Details, number: int, steps: int, length: int) -> list[Point]:
    """The points of all seeds."""
    return [
        point
        for point in details["points"]
        if (point["round"], point["steps"], point["length"]) == (number, steps, length)
    ]


def values(points: Sequence[Point], name: str) -> list[float]:
    """A measure of every sample of some points."""
    return [value for point in points for value in point["values"][name]]


def difference(ours: Sequence[Point], theirs: Sequence[Point], name: str) -> Interval:
    """The mean over samples of a measure's difference; sample i of both began from one noise."""
    pairs = zip(values(ours, name), values(theirs, name), strict=True)
    return interval(a - b for a, b in pairs)


def _validity(points: Sequence[Point], real: Mapping[str, Any] | None, steps: int) -> Verdict:
    found = interval(values(points, "ca_bond_valid"))
    beside = ""
    if real is not None:
        beside = f" Real chains: {interval(real['values']['ca_bond_valid']).mean:.1%}."
    length = points[0]["length"]
    return Verdict(
        f"{found.mean:.1%} ± {100 * found.half_width:.1f} valid at {steps} steps",
        f"CA-CA distances within 3.8 ± 0.1 Å, mean over {found.n} samples of {length} residues "
        f"of the first flow, with its 95 % interval.{beside}",
    )


def _compared(ours: Sequence[Point], theirs: Sequence[Point], words: str) -> Verdict:
    found = difference(ours, theirs, "ca_bond_valid")
    tone = "neutral"
    if found.excludes_zero:
        tone = "gain" if found.mean > 0 else "loss"
    return Verdict(
        f"{100 * found.mean:+.1f} ± {100 * found.half_width:.1f} points: {words}",
        f"Difference of the valid CA-CA distances over {found.n} samples from the same noise, with "
        "its 95 % interval.",
        tone,
    )


def _folds(
    ours: Sequence[Point], theirs: Sequence[Point], real: Mapping[str, Any] | None
) -> Verdict:
    """What reflow cost: secondary structure, clashes, diversity."""
    parts = []
    for name, word in (("helix", "helix"), ("strand", "strand"), ("clashes_per_100", "clashes")):
        before, after = interval(values(theirs, name)).mean, interval(values(ours, name)).mean
        beside = f" (real {_written(name, interval(real['values'][name]).mean)})" if real else ""
        parts.append(f"{word} {_written(name, before)} to {_written(name, after)}{beside}")
    scores = [interval(point["tm_score"] for point in points).mean for points in (theirs, ours)]
    parts.append(f"mean TM-score of pairs {scores[0]:.2f} to {scores[1]:.2f}")
    change = difference(ours, theirs, "clashes_per_100")
    worse = change.excludes_zero and change.mean > 0
    return Verdict(
        "What else reflow changed", "; ".join(parts) + ".", "warning" if worse else "neutral"
    )


def _written(name: str, value: float) -> str:
    return format(value, MEASURES[name][1])


def _curves(results: Results, details: Details) -> Iterator[Part]:
    config = results["config"]
    for length in config["lengths"]:
        for name in ("ca_bond_valid", "peptide_valid"):
            yield _curve(config, details, length, name)
        yield _speed(config, details, length)


def _curve(config: Mapping[str, Any], details: Details, length: int, name: str) -> Figure:
    series = []
    steps = sorted(config["steps"])
    for number in range(1, config["rounds"] + 1):
        found = [interval(values(_of(details, number, one, length), name)) for one in steps]
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
            points = _of(details, number, steps, length)
            seconds = interval(point["seconds_per_sample"] for point in points).mean
            rows.append((flow_name(number), steps, seconds))
    return Table(
        f"Seconds a sample, {length} residues",
        ("flow", "steps", "seconds"),
        rows,
        note="Wall time of the samples of a point over their number, made in batches.",
        formats={"seconds": ".4f"},
    )


def _structures(details: Details) -> Iterator[Part]:
    for name, texts in details["shown"].items():
        number, length, steps = (
            part.strip("abcdefghijklmnopqrstuvwxyz") for part in name.split("-")
        )
        yield Structures(
            f"{flow_name(int(number)).capitalize()}, {steps} steps, {length} residues",
            {f"sample {n}": text for n, text in enumerate(texts)},
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
                found = interval(values(_of(details, number, -steps, length), name))
                cells.append(_with_half_width(name, found))
            if real:
                cells.append(_with_half_width(name, interval(real["values"][name])))
            rows.append((words, *cells))
        for key, words in _SHAPES.items():
            cells = []
            for number, steps in places:
                chosen = [p[key] for p in _of(details, number, -steps, length) if key in p]
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


def _training(results: Results, details: Details) -> Iterator[Part]:
    for name, losses in details["losses"].items():
        if len(losses) < 2:
            continue
        number, _, seed = name.removeprefix("round").partition("-seed")
        yield lines(
            [Series("loss", list(range(1, len(losses) + 1)), losses)],
            title=f"{flow_name(int(number)).capitalize()}, seed {seed}",
            x_label="epoch",
            y_label="mean loss",
            alt=f"The loss goes from {losses[0]:.2f} to {losses[-1]:.2f}.",
        )
    chains, refused = details["chains"], details["refused"]
    said = [
        f"{chains['train']} chains were learnt from, {chains['held_out']} held out; the network "
        f"has {details['parameters']:,} parameters. The last part of the work took "
        f"{details['seconds']:.0f} s."
    ]
    if refused["count"]:
        said.append(f"{refused['count']} files or chains could not be used; the first:")
        said += refused["first"]
    yield Text(tuple(said))


def _origin(results: Results) -> Iterator[Part]:
    command = results["environment"].get("command")
    if command:
        yield Code(command)
    yield KeyValues("Settings", results["config"])
    yield KeyValues("Environment", results["environment"])
