"""The table of the AP study from what its runs left: `python -m benchmarks.gpu merge FILES`.

Effects are differences between an arm and its base at equal densities, paired by seed, mean over
the pruned cycles below 20 % density; intervals are two-sided 95 % t-intervals over seeds. The
family is the one that was declared: 2 norms x 2 scores x 2 arms x 2 quantities. A comparison that
has not been run counts in it, as one with p = 1, so that the correction does not depend on how far
we got.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.prune import STUDIES, Study
from rectified.statistics import Interval, holm, paired

BELOW = 0.2  # density
LEVEL = 0.05
GAIN = 1.0  # points of accuracy: an interval below contradicts the claim
QUANTITIES = {"dynamic_dnr": "dynamic dead rate", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Effect:
    """One comparison of the family.

    Attributes:
        study: where it is from.
        quantity: of the rows.
        found: the difference, in percentage points; None where it was not run.
        cycles: how many it is the mean over.
    """

    study: Study
    quantity: str
    found: Interval | None
    cycles: int


def effects(files: Sequence[Mapping[str, Any]]) -> list[Effect]:
    """All comparisons of the family, run or not."""
    by_study: dict[Study, list[Any]] = {}
    for file in files:
        rows = by_study.setdefault(Study(**file["study"]), [])
        rows += [row for row in file["rows"] if row["cycle"] and row["density"] < BELOW]
    return [
        _effect(study, quantity, by_study.get(study, []))
        for study in STUDIES
        for quantity in QUANTITIES
    ]


def _effect(study: Study, quantity: str, rows: Sequence[Mapping[str, Any]]) -> Effect:
    base, arm = study.arms.split(",")
    both = _in_both(rows, base, arm)
    scaled = [{**row, quantity: 100 * row[quantity]} for row in both]
    if len({row["seed"] for row in both}) < 2:
        return Effect(study, quantity, None, 0)
    found = paired(scaled, quantity, lambda r: r["ap"] == arm, lambda r: r["ap"] == base)
    return Effect(study, quantity, found, len({row["cycle"] for row in both}))


def _in_both(rows: Sequence[Mapping[str, Any]], base: str, arm: str) -> Sequence[Mapping[str, Any]]:
    """Rows whose partner, and those of all other seeds in that cycle, are there."""
    points: dict[int, set[tuple[int, str]]] = {}
    for row in rows:
        points.setdefault(row["cycle"], set()).add((row["seed"], row["ap"]))
    seeds = {row["seed"] for row in rows}
    whole = {
        cycle
        for cycle, found in points.items()
        if found >= {(seed, ap) for seed in seeds for ap in (base, arm)}
    }
    return [row for row in rows if row["cycle"] in whole]


def table(found: Sequence[Effect]) -> list[str]:
    """The effects as a table in Markdown."""
    corrected = holm([1.0 if one.found is None else one.found.p for one in found])
    lines = [
        "| network | score | arm - base | quantity | points | p (Holm) | seeds, cycles |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one, p in zip(found, corrected, strict=True):
        base, arm = one.study.arms.split(",")
        norm = "batch norm" if one.study.norm == "batch" else "no norm"
        words = [norm, one.study.score, f"{arm} - {base}", QUANTITIES[one.quantity]]
        if one.found is None or math.isnan(one.found.half_width):
            words += ["not run", "", ""]
        else:
            text = f"{one.found.mean:+.2f} ± {one.found.half_width:.2f}"
            words += [
                f"**{text}**" if p < LEVEL else text,
                f"{p:.2g}",
                f"{one.found.n}, {one.cycles}",
            ]
        lines.append("| " + " | ".join(words) + " |")
    return lines


def verdicts(found: Sequence[Effect]) -> list[str]:
    """Of every setting that was run, what becomes of the paper's claim there, as declared."""
    corrected = holm([1.0 if one.found is None else one.found.p for one in found])
    lines = []
    for position in range(0, len(found), 2):
        rate, accuracy = found[position : position + 2]
        if rate.found is None or accuracy.found is None:
            continue
        lowers = rate.found.mean < 0 and corrected[position] < LEVEL
        raises = accuracy.found.mean > 0 and corrected[position + 1] < LEVEL
        verdict = "undecided"
        if lowers and raises:
            verdict = "supported"
        elif accuracy.found.high < GAIN:
            verdict = "contradicted"
        lines.append(
            f"- {rate.study.name}: the claim is {verdict} "
            f"(dead rate {'lower' if lowers else 'not shown to be lower'}, accuracy "
            f"{'higher' if raises else 'not shown to be higher'}, a gain above "
            f"{accuracy.found.high:+.2f} points excluded)."
        )
    return lines


def means(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy and dynamic dead rate by density, means over seeds."""
    lines = [
        "| run | arm | density | accuracy, % | dynamic dead rate, % | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for file in files:
        study = Study(**file["study"])
        for arm in study.arms.split(","):
            for cycle in sorted({row["cycle"] for row in file["rows"]}):
                rows = [r for r in file["rows"] if r["cycle"] == cycle and r["ap"] == arm]
                if rows:
                    lines.append("| " + " | ".join(_mean_row(study, arm, rows)) + " |")
    return lines


def _mean_row(study: Study, arm: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    mean = {
        name: 100 * sum(row[name] for row in rows) / len(rows)
        for name in ("density", "accuracy", "dynamic_dnr")
    }
    return [
        study.name,
        arm,
        f"{mean['density']:.1f} %",
        f"{mean['accuracy']:.2f}",
        f"{mean['dynamic_dnr']:.2f}",
        str(len(rows)),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="NAME.json of `prune`")
    parser.add_argument("--out", type=Path, help="also write them there")
    parser.add_argument("--means", action="store_true", help="also every cycle's means")
    given = parser.parse_args(arguments)
    files = [json.loads(path.read_text()) for path in given.files]
    found = effects(files)
    lines = [*table(found), "", *verdicts(found)]
    if given.means:
        lines += ["", *means(files)]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")
    return 0
