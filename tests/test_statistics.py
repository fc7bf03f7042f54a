import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from rectified.errors import UserError
from rectified.statistics import Interval, gaussian_distance, holm, interval, paired


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


def test_the_formula_is_scipys_matrix_root():
    generator = np.random.default_rng(0)
    first = generator.standard_normal((50, 6)) @ generator.standard_normal((6, 6))
    second = generator.standard_normal((60, 6)) + 0.3
    covariances = [np.cov(one.T) for one in (first, second)]
    cross = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * cross)
    found = gaussian_distance(torch.from_numpy(first), torch.from_numpy(second))
    assert found == pytest.approx(expected, rel=1e-9)


def test_fewer_samples_than_features_are_enough():
    first = torch.randn(5, 20, dtype=torch.float64)
    assert gaussian_distance(first, first) == pytest.approx(0, abs=1e-12)


def test_it_is_a_squared_distance():
    one, other = torch.randn(40, 3), 2 * torch.randn(30, 3) + 1
    assert gaussian_distance(one, other) == pytest.approx(gaussian_distance(other, one))
    assert gaussian_distance(5 * one, 5 * other) == pytest.approx(
        25 * gaussian_distance(one, other)
    )
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    assert gaussian_distance(one @ turn, other @ turn) == pytest.approx(
        gaussian_distance(one, other), rel=1e-5
    )


def test_a_shift_costs_its_square_and_a_stretch_the_square_of_its_growth():
    one = torch.randn(100, 4, dtype=torch.float64)
    assert gaussian_distance(one, one + 3) == pytest.approx(4 * 9)
    spread = float(one.var(0).sum())
    centred = one - one.mean(0)
    assert gaussian_distance(centred, 3 * centred) == pytest.approx(4 * spread)


def test_real_against_real_is_of_the_order_of_features_over_rows():
    generator = torch.Generator().manual_seed(0)
    found = [
        gaussian_distance(*(torch.randn(rows, 16, generator=generator) for _ in range(2)))
        for rows in (100, 400, 1600)
    ]
    assert found[0] > 2 * found[1] > 4 * found[2]
    assert 16 / 1600 / 4 < found[2] < 16 * 16 / 1600


def test_features_that_are_not_finite_have_no_distance():
    for value in (math.nan, math.inf):
        assert math.isnan(gaussian_distance(torch.full((4, 2), value), torch.zeros(4, 2)))


@pytest.mark.usefixtures("unchecked")
def test_one_row_has_no_covariance():
    with pytest.raises(UserError, match="two rows or more, got 1 and 4"):
        gaussian_distance(torch.zeros(1, 3), torch.zeros(4, 3))
