"""Couplings: who is paired with whom."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from rectified.errors import UserError
from rectified.flow import FromSet, Independent, MinibatchOT, WithinClass, transport_cost
from rectified.flow.couplings import (
    ByLabels,
    Coupling,
    Given,
    Mixture,
    assignment,
    gaussian,
    independent,
    minibatch_ot,
)
from tests.flow.oracles import normal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_assignment_is_the_least_over_all_permutations(count, seed):
    x0, x1 = normal(count, 3, seed=seed), normal(count, 3, seed=seed + 10)
    least = min(
        transport_cost(x0[list(order)], x1) for order in itertools.permutations(range(count))
    )
    assert transport_cost(x0[assignment(x0, x1)], x1) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("far", [0.0, 100.0])
def test_the_assignment_costs_what_scipy_s_on_the_whole_cost_does(far):
    x0, x1 = normal(80, 2, 2), normal(80, 2, 2, seed=1) + far
    cost = cdist(x1.flatten(1).numpy(), x0.flatten(1).numpy(), "sqeuclidean")
    least = cost[linear_sum_assignment(cost)].mean()
    assert transport_cost(x0[assignment(x0, x1)], x1) == pytest.approx(least, rel=1e-9)


def test_every_point_is_used_once_and_targets_stay_in_place():
    x1 = normal(64, 2)
    x0, same = minibatch_ot(x1, generator())
    assert same is x1
    drawn = gaussian(x1, generator())
    assert sorted(x0.tolist()) == sorted(drawn.tolist())


def test_the_optimal_coupling_costs_no_more_than_the_independent_one():
    for seed in range(5):
        x1 = normal(64, 2, seed=seed) + 3
        costs = [transport_cost(*coupling(x1, generator(seed + 9))) for coupling in COUPLINGS[:2]]
        assert costs[1] < costs[0]


COUPLINGS = [
    independent,
    minibatch_ot,
    Given(normal(9, 2), normal(9, 2, seed=1)),
    Mixture((independent, minibatch_ot), (0.5, 0.5)),
    Independent(FromSet(normal(7, 2))),
]


@pytest.mark.parametrize("coupling", COUPLINGS, ids=lambda one: type(one).__name__)
def test_pairs_are_as_many_as_targets_and_those_of_the_generator(coupling):
    assert isinstance(coupling, Coupling)
    x1 = normal(20, 2)
    x0, y1 = coupling(x1, generator())
    assert x0.shape == y1.shape == x1.shape
    assert x0.dtype == y1.dtype == x1.dtype
    again, _ = coupling(x1, generator())
    other, _ = coupling(x1, generator(1))
    assert torch.equal(x0, again)
    assert not torch.equal(x0, other)


def test_gaussian_noise_is_standard_in_the_targets_type():
    x0 = gaussian(torch.zeros(50_000, 2, dtype=torch.float64), generator())
    assert x0.dtype == torch.float64
    torch.testing.assert_close(x0.mean(0), torch.zeros_like(x0[0]), atol=0.02, rtol=0)
    torch.testing.assert_close(x0.T.cov(), torch.eye(2).double(), atol=0.02, rtol=0)


def test_a_set_gives_its_own_points_alike():
    points = torch.arange(4.0)[:, None]
    drawn = FromSet(points)(torch.zeros(40_000, 1), generator())
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [0, 1, 2, 3]
    assert counts.double().div(40_000).tolist() == pytest.approx([0.25] * 4, abs=0.01)


def test_given_pairs_stay_pairs():
    x0 = normal(50, 3)
    drawn, ends = Given(x0, 2 * x0 + 1)(torch.zeros(500, 3, dtype=torch.float64), generator())
    torch.testing.assert_close(ends, 2 * drawn + 1)
    assert len(drawn.unique(dim=0)) == 50


def test_a_mixture_has_its_shares():
    parts = [Given(torch.full((1, 1), float(i)), torch.full((1, 1), float(-i))) for i in range(3)]
    x0, x1 = Mixture(parts, (0.7, 0.3, 0.0))(torch.zeros(40_000, 1), generator())
    assert torch.equal(x0, -x1)
    shares = [float((x0 == i).double().mean()) for i in range(3)]
    assert shares == pytest.approx([0.7, 0.3, 0.0], abs=0.01)
    assert shares[2] == 0


def test_within_classes_source_points_go_to_the_class_they_were_drawn_for():
    x1, labels = normal(60, 2), torch.arange(60) % 3
    number = iter(range(60))

    def numbered(points, _):
        return torch.stack([torch.full_like(row, next(number)) for row in points])

    x0, same = WithinClass(Independent(numbered))(x1, generator(), labels=labels)
    assert same is x1
    assert ((x0[:, 0] // 20).long() == labels).all()  # 20 draws a class, class by class


def test_within_classes_the_assignment_is_optimal_in_each():
    x1, labels = normal(30, 2), torch.arange(30) % 2
    x0, _ = WithinClass(MinibatchOT())(x1, generator(), labels=labels)
    for label in (0, 1):
        chosen = labels == label
        own = assignment(x0[chosen], x1[chosen])
        assert own.tolist() == list(range(15))
    assert assignment(x0, x1).tolist() != list(range(30))


def test_a_coupling_within_classes_is_one_by_labels_and_others_are_not():
    x1, labels = normal(6, 2), torch.tensor([0, 1, 0, 1, 2, 2])
    coupling = WithinClass(MinibatchOT())
    assert isinstance(coupling, ByLabels)
    assert not isinstance(MinibatchOT(), ByLabels)
    given = coupling.given(labels)
    assert torch.equal(given(x1, generator())[0], coupling(x1, generator(), labels=labels)[0])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FromSet(torch.zeros(0, 2)), "at least one point, got none"),
        (
            lambda: FromSet(torch.zeros(5, 3))(torch.zeros(4, 2)),
            r"must have one dimension, got points of shape \(3,\) and \(2,\)",
        ),
        (lambda: Given(torch.zeros(3, 2), torch.zeros(4, 2)), r"got \(3, 2\) and \(4, 2\)"),
        (lambda: Given(torch.zeros(0, 2), torch.zeros(0, 2)), "at least one"),
        (lambda: Mixture((), ()), "one weight per part, got 0 parts and 0 weights"),
        (lambda: Mixture((independent,), (0.5, 0.5)), "one weight per part"),
        (lambda: Mixture((independent,), (-1.0,)), "weights must be at least 0"),
        (lambda: Mixture((independent,), (0.0,)), "not all 0"),
        (lambda: WithinClass(minibatch_ot)(torch.zeros(4, 2)), "needs the labels of the batch"),
        (
            lambda: assignment(torch.full((2, 1), torch.nan), torch.zeros(2, 1)),
            "points to assign must be finite",
        ),
    ],
)
def test_impossible_couplings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
