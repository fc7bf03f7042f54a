"""Metrics of flows: closed forms, brute force, and how they fit together."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from rectified.errors import UserError
from rectified.flow import (
    Field,
    euler,
    feature_distance,
    first_order_gap,
    optimal_cost,
    predictions,
    straight,
    straightness,
    transport_cost,
    wasserstein2,
)
from rectified.flow.metrics import sliced_wasserstein
from rectified.flow.paths import PATHS
from rectified.flow.solvers import rk4
from rectified.statistics import gaussian_distance
from tests.flow.oracles import GaussianFlow, normal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("angle", [0.5, 1.5, math.pi])
def test_straightness_of_a_rotation_is_known(angle):
    """Z_t turns by `angle`: S = |z|^2 (angle^2 - 4 sin^2(angle / 2)), and a chord of 2 sin."""
    turn = torch.tensor([[0.0, -angle], [angle, 0.0]], dtype=torch.float64)
    x0 = normal(50, 2)
    found = straightness(lambda x, t: x @ turn.T, x0, steps=400, step=rk4)
    size = float(x0.square().sum(1).mean())
    chord = 4 * math.sin(angle / 2) ** 2
    assert found.total == pytest.approx(size * (angle**2 - chord), rel=1e-4)
    assert found.per_dimension == pytest.approx(found.total / 2)
    assert found.relative == pytest.approx(angle**2 / chord - 1, rel=1e-4)


def test_a_constant_velocity_is_straight_whatever_its_size():
    v = normal(20, 3, seed=1)
    found = straightness(lambda x, t: v, normal(20, 3))
    assert found.total == pytest.approx(0, abs=1e-10)  # the grid is of float32
    assert found.relative == pytest.approx(0, abs=1e-10)


def test_a_straight_line_at_changing_speed_is_not_straight():
    """Z_t = z + t^2: S = int (1 - 2 t)^2 dt = 1/3."""
    found = straightness(lambda x, t: 2 * t * torch.ones_like(x), normal(5, 1), steps=1000)
    assert found.total == pytest.approx(1 / 3, rel=1e-3)


def test_a_flow_that_stands_still_has_no_relative_straightness():
    assert math.isnan(straightness(lambda x, t: 0 * x, normal(5, 2)).relative)


def test_on_the_straight_path_the_gap_is_relative_straightness():
    exact = GaussianFlow(straight)
    field, x0 = Field(exact.network(predictions.velocity)), normal(200, 3)
    found = first_order_gap(field, x0, steps=50)
    assert found == pytest.approx(straightness(field, x0, steps=50, step=euler).relative, rel=1e-4)
    assert found > 0.01


@pytest.mark.parametrize("name", PATHS)
def test_the_gap_is_zero_where_end_points_do_not_change(name):
    """N(0, d^2) from N(0, 1) is made first-order by pairing x1 = d x0."""

    class Paired:
        path = PATHS[name]

        def endpoints(self, x, t):
            c = self.path.coefficients(t)
            x0 = x / (0.6 * c.a + c.b)
            return predictions.Endpoints(x0, 0.6 * x0)

    c = PATHS[name].coefficients(torch.tensor([0.0, 1.0]).double())
    first, last = (0.6 * c.a + c.b).tolist()
    # a path that begins with some of x1 in it begins beside x0: that alone is left
    begun = float(PATHS[name].start(torch.ones(1).double())) / first
    whole = last * begun - 1
    leak = ((0.6 - 1) * begun / whole - 1) ** 2
    assert leak < 0.01
    assert first_order_gap(Paired(), normal(20, 2)) == pytest.approx(leak, rel=1e-3, abs=1e-10)


@pytest.mark.parametrize("name", PATHS)
def test_the_gap_sees_end_points_that_change_on_any_path(name):
    exact = GaussianFlow(PATHS[name])
    field = Field(exact.network(predictions.v_prediction), PATHS[name], predictions.v_prediction)
    assert first_order_gap(field, normal(200, 2), steps=50) > 0.01


def test_transport_cost_is_a_mean_over_points_of_a_sum_over_dimensions():
    x0, x1 = normal(7, 2, 3), normal(7, 2, 3, seed=1)
    wanted = sum(((b - a) ** 2).sum() for a, b in zip(x0, x1, strict=True)) / 7
    assert transport_cost(x0, x1) == pytest.approx(float(wanted))


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_exact_distance_is_the_least_over_all_pairings(count):
    one, other = normal(count, 2), normal(count, 2, seed=1)
    least = min(
        transport_cost(one[list(order)], other) for order in itertools.permutations(range(count))
    )
    assert optimal_cost(one, other) == pytest.approx(least)
    assert wasserstein2(one, other) == pytest.approx(math.sqrt(least))


def test_in_one_dimension_it_is_the_distance_of_sorted_points():
    one, other = normal(100, 1), 2 * normal(100, 1, seed=1) + 3
    wanted = (one.sort(0).values - other.sort(0).values).square().mean().sqrt()
    assert wasserstein2(one, other) == pytest.approx(float(wanted))


def test_between_a_set_and_its_affine_image_it_is_gaussian_s_closed_form():
    """x -> m + d x is the optimal map, so W2^2 = |m - (1 - d) mean|^2 + (1 - d)^2 var, exactly."""
    x = normal(300, 2)
    shift = torch.tensor([1.0, -2.0], dtype=torch.float64)
    y = shift + 0.5 * x
    apart = (shift - 0.5 * x.mean(0)).square().sum() + 0.25 * x.var(0, correction=0).sum()
    assert wasserstein2(x, y[torch.randperm(300, generator=generator())]) == pytest.approx(
        float(apart) ** 0.5, rel=1e-9
    )
    # and the Fréchet distance of Gaussians is the same but for n - 1 in its variance
    assert gaussian_distance(x, y) == pytest.approx(float(apart), rel=0.01)


def test_sliced_is_exact_in_one_dimension():
    one, other = normal(100, 1), 2 * normal(100, 1, seed=1) + 3
    found = sliced_wasserstein(one, other, directions=3, generator=generator())
    assert found == pytest.approx(wasserstein2(one, other))
    # SciPy's one-dimensional distance is of first order, a lower bound
    assert stats.wasserstein_distance(one[:, 0], other[:, 0]) <= found


def test_sliced_of_a_shift_is_the_shift_over_the_root_of_dimensions():
    x, shift = normal(50, 3), torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    found = sliced_wasserstein(x, x + shift, directions=20_000, generator=generator())
    assert found == pytest.approx(5 / 3**0.5, rel=0.02)


def test_sliced_is_no_more_than_exact_and_that_of_its_generator():
    one, other = normal(60, 2, 2), normal(60, 2, 2, seed=1) + 1
    first, again, different = (
        sliced_wasserstein(one, other, directions=50, generator=generator(seed))
        for seed in (0, 0, 1)
    )
    assert first == again != different
    assert first < wasserstein2(one, other)


def test_features_are_compared_in_parts():
    one, other = normal(25, 1, 4, 4), normal(30, 1, 4, 4, seed=1) + 1
    asked = []

    def features(x):
        asked.append(len(x))
        return x.mean(2)

    found = feature_distance(features, one, other, batch=10)
    assert asked == [10, 10, 5, 10, 10, 10]
    wanted = gaussian_distance(one.mean(2).flatten(1), other.mean(2).flatten(1))
    assert found == pytest.approx(wanted)


def test_samples_that_are_not_finite_have_no_distance():
    bad = torch.full((4, 2), math.nan)
    assert math.isnan(wasserstein2(bad, torch.zeros(4, 2)))
    assert math.isnan(optimal_cost(torch.zeros(4, 2), bad / 0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: straightness(lambda x, t: x, normal(2, 2), steps=1), "at least 2 to see a bend"),
        (
            lambda: first_order_gap(Field(lambda x, t: x), normal(2, 2), steps=1),
            "at least 2 to see a change, got 1",
        ),
        (lambda: wasserstein2(normal(2, 2), normal(3, 2)), r"got \(2, 2\) and \(3, 2\)"),
        (lambda: optimal_cost(normal(2, 2), normal(2, 3)), "equally many points of one shape"),
        (lambda: wasserstein2(torch.zeros(0, 2), torch.zeros(0, 2)), "equally many points"),
        (
            lambda: sliced_wasserstein(normal(2, 2), normal(3, 2), generator=generator()),
            "equally many points",
        ),
        (
            lambda: sliced_wasserstein(
                normal(2, 2), normal(2, 2), directions=0, generator=generator()
            ),
            "directions must be at least 1, got 0",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
