"""The Fréchet distance between samples of features: by other routes, and at its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from rectified.errors import UserError
from rectified.frechet import gaussian_distance


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
