"""Arms beside their bases, paired by seed at the same densities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rectified.jobs.job import Results
from rectified.statistics import Interval, Verdict, paired
from rectified.statistics import verdicts as judged

BASES = {"pro": "off_pro"}  # the arm of equal training, where it was run; else off
NAMES = {
    "off": "without AP",
    "lite": "AP-lite",
    "pro": "AP-pro",
    "random": "random share",
    "any_sign": "smallest movement, any sign",
    "off_pro": "without AP, double training",
}
QUANTITIES = {"accuracy": "higher", "dynamic_dnr": "lower"}  # which way is better

Row = Mapping[str, Any]


def arm_name(ap: str) -> str:
    """An arm in words."""
    return NAMES.get(ap, ap)


@dataclass(frozen=True)
class Comparison:
    """An arm and what it is compared with.

    Attributes:
        score: the pruning method of both.
        ap: the arm.
        base: its base.
    """

    score: str
    ap: str
    base: str

    @property
    def subject(self) -> str:
        """Its name in a verdict."""
        return f"{self.ap} with {self.score}"

    def difference(self, rows: Sequence[Row], quantity: str, cycle: int | None = None) -> Interval:
        """Arm minus base, in one cycle or over the mean of all pruned ones."""
        return paired(rows, quantity, self._chosen(self.ap, cycle), self._chosen(self.base, cycle))

    def _chosen(self, ap: str, cycle: int | None) -> Callable[[Row], bool]:
        return lambda row: (
            row["score"] == self.score
            and row["ap"] == ap
            and (row["cycle"] > 0 if cycle is None else row["cycle"] == cycle)
        )


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Every arm that was pruned beside its base."""
    present = {(row["score"], row["ap"]) for row in rows if row["cycle"] > 0}
    made = []
    for score in dict.fromkeys(row["score"] for row in rows):
        for ap in dict.fromkeys([*NAMES, *(row["ap"] for row in rows)]):
            base = BASES.get(ap, "off")
            base = base if (score, base) in present else "off"
            if ap != base and {(score, ap), (score, base)} <= present:
                made.append(Comparison(score, ap, base))
    return made


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Accuracy and dynamic dead neuron rate of every arm against its base's, over seeds."""
    return judged(
        [
            {
                "found": one.difference(rows, quantity),
                "subject": one.subject,
                "base": one.base,
                "quantity": quantity,
                "better": better,
            }
            for one in comparisons(rows)
            for quantity, better in QUANTITIES.items()
        ]
    )


@dataclass(frozen=True)
class Effect:
    """A comparison, judged.

    Attributes:
        of: what was compared.
        accuracy: of the test split.
        dynamic: dynamic dead neuron rate.
    """

    of: Comparison
    accuracy: Verdict
    dynamic: Verdict


def effects(results: Results) -> list[Effect]:
    """Every comparison with the verdicts in results.json; version 0.1 wrote none there."""
    written = [Verdict(**row) for row in results.verdicts] or verdicts(results.rows)
    found = {(one.subject, one.quantity): one for one in written}
    return [
        Effect(one, *(found[one.subject, quantity] for quantity in QUANTITIES))
        for one in comparisons(results.rows)
    ]
