"""Poolings: what they compute, and constants that are exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from rectified.errors import UserError
from rectified.scattering import (
    average,
    custom_pooling,
    l2,
    linear,
    maximum,
    mean,
    no_pooling,
    power,
    subsample,
)

WINDOW = torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.3, 0.4], [0.2, 0.1, 0.0]], dtype=torch.float64)
ALL = [
    no_pooling(),
    subsample(2),
    average(2),
    average(3),
    mean(2),
    maximum(2),
    maximum(2, window=3),
    power(2, 1.0),
    power(3, 1.5),
    power(2, 4.0),
    l2(2),
    linear(2, WINDOW),
    linear(3, WINDOW),
]
GRID = (6, 12)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def worst_quotient(pooling, steps=300):
    """Gradient ascent on pairs; from zero maps too, where norms of blocks are steepest."""
    pair = torch.randn(2, 8, *GRID, generator=generator(), dtype=torch.float64)
    pair[1] *= torch.linspace(0, 1, 8)[:, None, None]
    pair[0, 0] = pair[0, 0].abs()
    pair.requires_grad_()
    optimizer = torch.optim.Adam([pair], lr=0.05)
    worst = 0.0
    for _ in range(steps):
        moved = (pooling(pair[0], 2) - pooling(pair[1], 2)).flatten(1).norm(dim=1)
        ratio = moved / (pair[0] - pair[1]).flatten(1).norm(dim=1)
        worst = max(worst, ratio.max().item())
        optimizer.zero_grad()
        (-ratio.sum()).backward()
        optimizer.step()
    return worst


@pytest.mark.parametrize("pooling", ALL, ids=lambda one: f"{one.name} {one.factor}")
def test_the_constant_bounds_every_pair_and_is_nearly_attained(pooling):
    bound = pooling.lipschitz(GRID)
    assert 0.95 * bound < worst_quotient(pooling) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("pooling", ALL, ids=lambda one: f"{one.name} {one.factor}")
def test_poolings_commute_with_translations_by_the_factor(pooling):
    x = torch.randn(3, *GRID, generator=generator(), dtype=torch.float64)
    moved = pooling(x.roll((pooling.factor, 2 * pooling.factor), (-2, -1)), 2)
    torch.testing.assert_close(moved, pooling(x, 2).roll((1, 2), (-2, -1)))


@pytest.mark.parametrize("pooling", ALL, ids=lambda one: f"{one.name} {one.factor}")
def test_zero_stays_zero_and_the_grid_is_as_said(pooling):
    found = pooling(torch.zeros(2, *GRID), 2)
    assert found.abs().max() == 0
    assert tuple(found.shape[1:]) == pooling.grid(GRID)


def test_an_overlapping_maximum_can_double_a_distance():
    spike = torch.zeros(1, 8, 8, dtype=torch.float64)
    spike[0, 4, 4] = 1
    assert maximum(2, window=3)(spike, 2).norm().item() == 2.0


def test_literal_rescaled_subsampling_is_not_non_expansive():
    """The theory's S^{d/2} f[Sn] on a grid: a comb grows by S^{d/2}, average keeps it."""
    comb = torch.zeros(1, 8, 8, dtype=torch.float64)
    comb[0, ::2, ::2] = 1
    literal = custom_pooling(
        "literal",
        2,
        lambda maps, d: 2 ** (d / 2) * subsample(2)(maps, d),
        generator=generator(),
        lipschitz=1.0,
    )
    assert literal(comb, 2).norm() / comb.norm() == 2
    assert average(2)(comb, 2).norm() / comb.norm() <= 1


def test_average_keeps_the_energy_of_constants():
    x = torch.full((1, 6, 6), 0.7, dtype=torch.float64)
    for factor in (2, 3):
        torch.testing.assert_close(average(factor)(x, 2).norm(), x.norm())
        torch.testing.assert_close(l2(factor)(x, 2).norm(), x.norm())


def test_the_maximum_is_scipys_at_every_second_place():
    x = np.random.default_rng(0).standard_normal((8, 10))
    shifted = ndimage.maximum_filter(np.abs(x), size=3, origin=-1, mode="wrap")
    found = maximum(2, window=3)(torch.from_numpy(x), 2)
    np.testing.assert_array_equal(found.numpy(), shifted[::2, ::2])


def test_linear_pooling_is_scipys_convolution_at_every_second_place():
    x = np.random.default_rng(0).standard_normal((8, 10))
    expected = ndimage.convolve(x, WINDOW.numpy(), mode="wrap")[::2, ::2] * 2
    np.testing.assert_allclose(linear(2, WINDOW)(torch.from_numpy(x), 2), expected, atol=1e-14)


def test_linear_constants_are_the_norm_of_the_matrix():
    pooling = linear(2, WINDOW)
    columns = pooling(torch.eye(24, dtype=torch.float64).reshape(24, 4, 6), 2).flatten(1)
    assert pooling.lipschitz((4, 6)) == pytest.approx(torch.linalg.matrix_norm(columns, 2).item())


def test_powers_tend_to_the_maximum():
    x = torch.randn(1, 4, 4, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(power(2, 200.0)(x, 2), maximum(2)(x, 2), rtol=0.01, atol=0)


def test_complex_maps_are_pooled():
    x = torch.randn(2, 4, 6, generator=generator(), dtype=torch.complex128)
    torch.testing.assert_close(average(2)(x, 2).real, average(2)(x.real, 2))
    torch.testing.assert_close(l2(2)(x, 2).square().sum(), x.abs().square().sum())
    torch.testing.assert_close(linear(2, WINDOW)(x, 2).imag, linear(2, WINDOW)(x.imag, 2))


def test_one_dimension_has_its_own_constants():
    assert mean(4).lipschitz((16,)) == 0.5
    assert maximum(2, window=4).lipschitz((16,)) == pytest.approx(math.sqrt(2))
    assert power(4, 1.0).lipschitz((16,)) == 2.0
    assert average(4)(torch.ones(1, 8), 1).tolist() == [[2.0, 2.0]]


def test_a_users_pooling_is_estimated_and_labelled():
    pooling = custom_pooling("mine", 2, lambda x, d: maximum(2)(x, d) / 2, generator=generator())
    assert pooling.lipschitz((4, 4)) == pytest.approx(0.5, rel=0.05)
    assert not pooling.is_exact


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: average(0), "pooling factor must be at least 1, got 0"),
        (lambda: average(2).grid((5, 4)), "divisible by the pooling factor 2 .* got 5x4"),
        (lambda: maximum(3, window=2), "window must be at least the pooling factor 3, got 2"),
        (lambda: power(2, 0.5), "p must be at least 1, got 0.5"),
        (
            lambda: custom_pooling("shrinks", 2, lambda x, d: x, generator=generator()).lipschitz(
                (4, 4)
            ),
            r"shrinks must give grid \(2, 2\)",
        ),
        (
            lambda: custom_pooling("moves", 1, lambda x, d: x + 1, generator=generator()).lipschitz(
                (4, 4)
            ),
            "moves must keep 0 at 0, got 1",
        ),
        (
            lambda: custom_pooling(
                "breaks", 1, lambda x, d: x * (x + 0.5).log(), generator=generator()
            ).lipschitz((4, 4)),
            "breaks must be finite",
        ),
    ],
)
def test_bad_poolings_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
