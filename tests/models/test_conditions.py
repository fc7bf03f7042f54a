"""What a network is told: the time, and perhaps a class."""

from __future__ import annotations

import math

import pytest
import torch

from rectified.errors import UserError
from rectified.models.conditions import Condition, TimeEmbedding


def test_times_are_sines_and_cosines_at_geometric_frequencies():
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    found = TimeEmbedding(8)(t)
    frequencies = [1000 * 1e4 ** (-i / 3) for i in range(4)]
    for row, time in zip(found, t.tolist(), strict=True):
        wanted = [math.sin(time * f) for f in frequencies]
        wanted += [math.cos(time * f) for f in frequencies]
        assert row.tolist() == pytest.approx(wanted, abs=1e-3)


def test_the_slowest_frequency_tells_all_times_apart():
    slowest = TimeEmbedding(16)(torch.linspace(0, 1, 100))[:, 7]
    assert (slowest.diff() > 0).all()


def test_frequencies_are_no_weights():
    assert not list(TimeEmbedding(8).state_dict())


@pytest.mark.parametrize("labels", [None, torch.tensor([-1, -1])])
def test_no_label_and_no_class_are_one(labels):
    condition, t = Condition(8, classes=3), torch.tensor([0.2, 0.7])
    torch.testing.assert_close(condition(t, labels), condition(t, torch.tensor([-1, -1])))


def test_every_class_and_none_is_told_apart():
    condition = Condition(8, classes=3)
    found = condition(torch.full((4,), 0.5), torch.tensor([-1, 0, 1, 2]))
    assert len(found.unique(dim=0)) == 4
    torch.testing.assert_close(
        found - found[:1], condition.label.weight[[3, 0, 1, 2]] - condition.label.weight[3:]
    )


def test_gradients_reach_all_parameters():
    condition = Condition(8, classes=2)
    condition(torch.rand(3), torch.tensor([-1, 0, 1])).square().sum().backward()
    assert all((p.grad != 0).any() for p in condition.parameters())
    assert (condition.label.weight.grad != 0).any(1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeEmbedding(7), "width must be even and at least 2, got 7"),
        (lambda: TimeEmbedding(0), "width must be even and at least 2, got 0"),
        (lambda: Condition(8, classes=-1), "classes must be at least 0, got -1"),
        (
            lambda: Condition(8)(torch.zeros(2), torch.zeros(2, dtype=torch.int64)),
            "this network has no classes: build it with classes=N",
        ),
    ],
)
def test_impossible_conditions_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
def test_a_class_beyond_the_last_is_not_taken_for_none():
    with pytest.raises(IndexError):
        Condition(8, classes=3)(torch.zeros(1), torch.tensor([4]))
