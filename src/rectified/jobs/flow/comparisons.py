"""Comparisons of flows over seeds, as verdicts.

2rf++, rd, phased    against the plain recipe of the same round, in the fewest steps: the ratio
                     of distances less 1
renoise              against the plain solver, in the most steps that it was tried in: the
                     difference of distances
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rectified import statistics
from rectified.statistics import Interval, Verdict, interval

Row = Mapping[str, Any]
Arm = tuple[str, int]  # recipe, round

RATIO = "relative distance"
"""A verdict's quantity: the distance over that of the base, less 1."""

_RIVALS: tuple[tuple[str, str, tuple[int, ...]], ...] = (  # ours, theirs, at which steps
    ("2rf++", "2rf", ()),
    ("rd", "2rf", ()),
    ("phased", "rd", (1, 2, 4, 8)),
)


def arms(rows: Sequence[Row]) -> list[Arm]:
    """Recipes and rounds, in the order of the work."""
    return list(dict.fromkeys((row["recipe"], row["round"]) for row in rows))


def all_steps(rows: Sequence[Row]) -> list[int]:
    """Numbers of steps, ascending."""
    return sorted({row["steps"] for row in rows})


def of_arm(rows: Sequence[Row], arm: Arm) -> list[Row]:
    """The rows of one flow."""
    return [row for row in rows if (row["recipe"], row["round"]) == arm]


def plain_solver(rows: Sequence[Row], arm: Arm) -> str:
    """The solver that a flow is judged by: its first, renoise only where that was forced."""
    return str(of_arm(rows, arm)[0]["solver"])


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every comparison of one flow with another, corrected for their number."""
    return statistics.verdicts([*_of_recipes(rows), *_of_renoise(rows)])


def _of_recipes(rows: Sequence[Row]) -> Iterator[Row]:
    every, measured = arms(rows), all_steps(rows)
    for recipe, number in every:
        for ours, theirs, wanted in _RIVALS:
            if recipe != ours or (theirs, number) not in every:
                continue
            for steps in measured:
                if steps not in (wanted or measured[:1]):
                    continue
                yield {
                    "found": _ratio(rows, (recipe, number), (theirs, number), steps),
                    "subject": f"{ours}, round {number}, {steps} step{'s' * (steps > 1)}",
                    "base": theirs,
                    "quantity": RATIO,
                    "better": "lower",
                }


def _ratio(rows: Sequence[Row], ours: Arm, theirs: Arm, steps: int) -> Interval:
    """The ratio of distances less 1, seed by seed."""
    one, other = (_distances(rows, arm, steps, plain_solver(rows, arm)) for arm in (ours, theirs))
    return interval(one[seed] / other[seed] - 1 for seed in sorted(one.keys() & other.keys()))


def _of_renoise(rows: Sequence[Row]) -> Iterator[Row]:
    for arm in arms(rows):
        tried = [row["steps"] for row in of_arm(rows, arm) if row["solver"] == "renoise"]
        plain = plain_solver(rows, arm)
        if not tried or plain == "renoise":
            continue
        most = max(tried)
        one, other = (_distances(rows, arm, most, solver) for solver in ("renoise", plain))
        yield {
            "found": interval(
                one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())
            ),
            "subject": f"renoise, {arm[0]}, round {arm[1]}, {most} steps",
            "base": "the plain solver",
            "quantity": "distance",
            "better": "lower",
        }


def _distances(rows: Sequence[Row], arm: Arm, steps: int, solver: str) -> dict[int, float]:
    """By seed; an undefined one is NaN, also in rows that were read back."""
    return {
        row["seed"]: math.nan if row["distance"] is None else row["distance"]
        for row in of_arm(rows, arm)
        if row["steps"] == steps and row["solver"] == solver
    }
