import math

import numpy as np
import pytest
from scipy import stats

from rectified.jobs.statistics import Interval, holm, interval, paired


def rows(metric, values, ap, cycle=1):
    return [
        {"seed": seed, "ap": ap, "cycle": cycle, metric: value} for seed, value in enumerate(values)
    ]


def test_an_interval_is_that_of_scipy():
    sample = np.random.default_rng(0).normal(0.3, 1.0, 17)
    found = interval(sample)
    reference = stats.ttest_1samp(sample, 0.0)
    low, high = reference.confidence_interval(0.95)
    assert found.mean == pytest.approx(sample.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-12)
    assert found.n == 17


def test_one_value_has_no_interval_and_none_has_no_mean():
    one = interval([2.0])
    assert (one.mean, one.n) == (2.0, 1)
    assert math.isnan(one.half_width)
    assert math.isnan(one.p)
    assert not one.excludes_zero
    assert math.isnan(interval([]).mean)


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_equal_values_have_an_interval_of_width_zero(value, p):
    assert interval([value] * 4) == Interval(value, 0.0, p, 4)


@pytest.mark.parametrize(("mean", "excludes"), [(-2.0, True), (0.5, False), (2.0, True)])
def test_an_interval_excludes_zero_if_it_lies_on_one_side(mean, excludes):
    assert Interval(mean, 1.0, 0.5, 9).excludes_zero is excludes


def test_the_paired_difference_is_that_of_a_paired_t_test():
    generator = np.random.default_rng(1)
    ours, theirs = generator.normal(0.9, 0.1, (2, 12))
    table = [*rows("accuracy", ours, "lite"), *rows("accuracy", theirs, "off")]
    found = paired(
        table, "accuracy", lambda row: row["ap"] == "lite", lambda row: row["ap"] == "off"
    )
    reference = stats.ttest_rel(ours, theirs)
    low, high = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)


def test_only_seeds_that_both_arms_have_are_paired_and_cycles_are_averaged():
    table = [
        *rows("loss", [1.0, 3.0], "lite", 1),
        *rows("loss", [3.0, 5.0], "lite", 2),
        *rows("loss", [1.0], "off", 1),
    ]
    found = paired(table, "loss", lambda row: row["ap"] == "lite", lambda row: row["ap"] == "off")
    assert (found.mean, found.n) == (1.0, 1)


def naive_holm(p_values):
    """By the definition: the largest of (m - j + 1) p_(j) over the ranks j up to one's own."""
    ordered = sorted(p_values)
    return [
        max(
            min(1.0, (len(p_values) - j) * ordered[j])
            for j in range(len(ordered))
            if ordered[j] <= p
        )
        for p in p_values
    ]


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_holm_is_its_definition(count):
    p_values = list(np.random.default_rng(count).uniform(0, 0.3, count))
    assert holm(p_values) == pytest.approx(naive_holm(p_values))


def test_holm_leaves_out_what_is_unknown():
    corrected = holm([0.01, math.nan, 0.04])
    assert math.isnan(corrected[1])
    assert [corrected[0], corrected[2]] == holm([0.01, 0.04])
