"""Entropic couplings: between the assignment and independent pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rectified.errors import UserError
from rectified.flow import FromSet, Sinkhorn, WithinClass, transport_cost
from rectified.flow.couplings import Coupling, assignment, costs, gaussian
from rectified.flow.sinkhorn import plan
from tests.flow.oracles import normal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_the_plan_is_that_of_cuturis_scalings(epsilon):
    """u and v with diag(u) K diag(v) of given marginals, without logarithms."""
    cost = costs(normal(7, 3), normal(7, 3, seed=1))
    kernel = np.exp(-cost.numpy() / epsilon)
    v = np.ones(7)
    for _ in range(3000):
        u = 1 / (kernel @ v)
        v = 1 / (kernel.T @ u)
    found = plan(cost, epsilon=epsilon, iterations=3000)
    np.testing.assert_allclose(found, u[:, None] * kernel * v, atol=1e-10)


@pytest.mark.parametrize("epsilon", [0.02, 0.3, 5.0])
def test_rows_and_columns_of_the_plan_sum_to_one(epsilon):
    found = plan(costs(normal(40, 2), normal(40, 2, seed=1)), epsilon=epsilon, iterations=2000)
    ones = torch.ones(40, dtype=torch.float64)
    torch.testing.assert_close(found.sum(1), ones)
    torch.testing.assert_close(found.sum(0), ones, atol=0.02, rtol=0)


def test_without_entropy_it_is_the_assignment():
    x0, x1 = normal(20, 2), normal(20, 2, seed=1)
    found = plan(costs(x0, x1), epsilon=1e-4, iterations=20_000)
    assert found.max(1).values.min() > 0.99
    assert found.argmax(1).tolist() == assignment(x0, x1).tolist()


def test_with_much_entropy_pairs_are_independent():
    found = plan(costs(normal(20, 2), normal(20, 2, seed=1)), epsilon=1e6)
    torch.testing.assert_close(found, torch.full_like(found, 1 / 20), atol=1e-6, rtol=0)


def test_pairs_cost_more_the_more_entropy():
    x1 = normal(128, 2) + 3
    spent = [
        transport_cost(*Sinkhorn(epsilon=epsilon)(x1, generator()))
        for epsilon in (0.01, 0.3, 100.0)
    ]
    x0 = gaussian(x1, generator())
    least = transport_cost(x0[assignment(x0, x1)], x1)
    assert least < 1.1 * spent[0]
    assert spent[0] < spent[1] < spent[2]


def test_targets_stay_in_place_and_every_source_is_used_once_on_average():
    x1, points = normal(12, 2), normal(12, 2, seed=3)
    coupling = Sinkhorn(lambda _, __: points, epsilon=0.2, iterations=500)
    assert isinstance(coupling, Coupling)
    draws, used = generator(), torch.zeros(12)
    for _ in range(2000):
        x0, same = coupling(x1, draws)
        assert same is x1
        used += torch.tensor([(x0 == point).all(1).sum() for point in points])
    torch.testing.assert_close(used / 2000, torch.ones(12), atol=0.1, rtol=0)


def test_any_set_is_a_source_and_classes_stay_together():
    x1, labels = normal(30, 2).float(), torch.arange(30) % 2
    x0, same = WithinClass(Sinkhorn(FromSet(normal(9, 2, seed=4).float())))(
        x1, generator(), labels=labels
    )
    assert same is x1
    assert x0.dtype == x1.dtype
    again, _ = WithinClass(Sinkhorn(FromSet(normal(9, 2, seed=4).float())))(
        x1, generator(), labels=labels
    )
    assert torch.equal(x0, again)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sinkhorn(epsilon=0.0), "epsilon must be positive, got 0.0"),
        (lambda: Sinkhorn(epsilon=float("nan")), "epsilon must be positive, got nan"),
        (lambda: Sinkhorn(iterations=0), "iterations must be at least 1, got 0"),
        (
            lambda: Sinkhorn()(torch.full((2, 1), torch.nan), generator()),
            "points to assign must be finite",
        ),
    ],
)
def test_impossible_entropies_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
