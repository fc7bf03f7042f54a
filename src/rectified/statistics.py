"""Statistics of what was measured: means over seeds with their uncertainty, and a distance.

Intervals are Student's t, paired where runs share a seed; many p-values are corrected by Holm. Two
samples of features, whatever they are features of, are at the squared Fréchet distance

    d^2 = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1^{1/2} C_2 C_1^{1/2})^{1/2}

between their means and covariances: what FID computes on Inception's features, and what the
scattering and flow packages offer on others. Two samples of n rows from one distribution are not
at distance 0 but of the order of features / n, so compare equal numbers, and give the distance of
real data to real data as the floor.

References:
    Dowson, Landau, The Fréchet distance between multivariate normal distributions, 1982; Heusel et
    al., 2017, arXiv 1706.08500; Holm, A simple sequentially rejective multiple test procedure,
    1979.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds.

    Attributes:
        mean: over the seeds.
        half_width: of the two-sided 95 % t-interval; NaN for fewer than two seeds.
        p: two-sided p-value of the mean being 0; NaN likewise.
        n: number of seeds.
    """

    mean: float
    half_width: float
    p: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def interval(values: Iterable[float | None]) -> Interval:
    """The mean of `values` with its 95 % t-interval; None is an undefined number.

    Example:
        >>> found = interval([1.0, 2.0, 3.0])
        >>> found.mean, round(found.half_width, 3)
        (2.0, 2.484)
    """
    from scipy import stats

    sample = np.asarray([math.nan if v is None else v for v in values], dtype=np.float64)
    n = len(sample)
    mean = float(sample.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    error = float(sample.std(ddof=1)) / math.sqrt(n)
    half_width = float(stats.t.ppf(0.975, n - 1)) * error
    if error == 0:
        return Interval(mean, 0.0, 1.0 if mean == 0 else 0.0, n)
    return Interval(mean, half_width, float(2 * stats.t.sf(abs(mean / error), n - 1)), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979); NaN stays NaN and is not counted.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = list(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True)
class Verdict:
    """A comparison of an arm with its base, paired over seeds.

    Attributes:
        subject: the arm.
        base: what it is compared with.
        quantity: the column of rows that is compared.
        better: which way is better.
        difference: of the means, in the quantity's own unit.
        low: lower end of its 95 % interval; None for one seed.
        high: upper end.
        p: two-sided, corrected for the number of comparisons; None for one seed.
        n: number of seeds.
        outcome: whether p < 0.05, and which way.
    """

    subject: str
    base: str
    quantity: str
    better: Literal["higher", "lower"]
    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    outcome: Literal["gain", "loss", "no evidence"]

    @property
    def half_width(self) -> float | None:
        """Of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def largest(self) -> float:
        """The largest difference, up or down, that the interval holds."""
        ends = [self.difference if end is None else end for end in (self.low, self.high)]
        return max(map(abs, ends))

    def in_points(self) -> str:
        """A difference of shares in percentage points.

        Example:
            >>> Verdict("a", "b", "accuracy", "higher", 0.01, None, None, None, 1,
            ...         "no evidence").in_points()
            '+1.00 (one seed: no interval)'
        """
        if self.half_width is None:
            return f"{100 * self.difference:+.2f} (one seed: no interval)"
        return f"{100 * self.difference:+.2f} ± {100 * self.half_width:.2f}"


def judge(
    found: Interval,
    *,
    subject: str,
    base: str,
    quantity: str,
    better: Literal["higher", "lower"],
    p: float | None = None,
) -> Verdict:
    """The verdict on a difference.

    Args:
        found: the paired difference, arm minus base.
        subject: the arm.
        base: what it is compared with.
        quantity: that is compared.
        better: which way is better.
        p: corrected for the number of comparisons; that of `found` for one alone.

    Example:
        >>> found = Interval(0.02, 0.005, 0.001, 8)
        >>> names = {"subject": "lite", "base": "off", "quantity": "accuracy"}
        >>> judge(found, **names, better="higher", p=0.004).outcome
        'gain'
        >>> judge(found, **names, better="lower", p=0.2).outcome
        'no evidence'
    """
    p = found.p if p is None else p
    low, high, p_value = (None if math.isnan(v) else v for v in (found.low, found.high, p))
    is_better = (found.mean > 0) == (better == "higher")
    outcome: Literal["gain", "loss", "no evidence"] = "no evidence"
    if p_value is not None and p_value < 0.05:
        outcome = "gain" if is_better else "loss"
    return Verdict(
        subject, base, quantity, better, found.mean, low, high, p_value, found.n, outcome
    )


def verdicts(found: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """The verdicts of a family of comparisons, corrected for their number (Holm).

    Args:
        found: for each, the arguments of `judge` by name but for p, its first as `found`.
    """
    corrected = holm([one["found"].p for one in found])
    return [judge(**one, p=p) for one, p in zip(found, corrected, strict=True)]


def paired(
    rows: Sequence[Row], metric: str, arm: Callable[[Row], bool], base: Callable[[Row], bool]
) -> Interval:
    """The mean over seeds of `metric` in one arm minus that in another, seed by seed.

    Where an arm has several rows of a seed (several cycles), their mean counts; None is an
    undefined number.
    """
    ours, theirs = _by_seed(rows, metric, arm), _by_seed(rows, metric, base)
    return interval(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))


def _by_seed(rows: Sequence[Row], metric: str, chosen: Callable[[Row], bool]) -> dict[int, float]:
    found: dict[int, list[float | None]] = {}
    for row in rows:
        if chosen(row):
            found.setdefault(row["seed"], []).append(row[metric])
    return {seed: float(np.mean(np.array(v, np.float64))) for seed, v in found.items()}


def gaussian_distance(
    first: Float[Tensor, "n features"], second: Float[Tensor, "m features"]
) -> float:
    """The squared Fréchet distance between normal distributions fitted to two samples.

    Args:
        first: at least two rows.
        second: at least two rows.

    Raises:
        UserError: if a sample has fewer than two rows.

    Example:
        >>> points = torch.tensor([[0.0], [2.0]])
        >>> gaussian_distance(points, points + 3)
        9.0
    """
    if min(len(first), len(second)) < 2:
        raise UserError(f"both samples need two rows or more, got {len(first)} and {len(second)}")
    if not bool(torch.isfinite(first).all() & torch.isfinite(second).all()):
        return math.nan  # samples of a network that has diverged
    means, roots = zip(*(_moments(one.double()) for one in (first, second)), strict=True)
    # with C = A A^T, the singular values of A_1^T A_2 are the roots of the eigenvalues
    overlap = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    spread = sum(float(root.square().sum()) for root in roots)
    apart = float((means[0] - means[1]).square().sum())
    return max(0.0, apart + spread - 2 * float(overlap))


def _moments(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and a square root A of the covariance A A^T."""
    mean = sample.mean(0)
    triangle = torch.linalg.qr((sample - mean) / (len(sample) - 1) ** 0.5).R
    return mean, triangle.T
