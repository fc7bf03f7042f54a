"""Movement against the changes of the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.pruning.scores import Movement
from tests.pruning.scores.snapshots import classify, perceptron, snapshot_of, state, watched


def test_movement_is_the_weight_times_its_change_over_the_rate_under_plain_descent() -> None:
    snapshot = snapshot_of(perceptron(3, 4, 3), 3)
    model = copy.deepcopy(snapshot.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    expected = {name: torch.zeros_like(snapshot.trained[name]) for name in snapshot.masks}
    score = Movement()
    with score.watch(nn.DataParallel(model)):
        for batch in snapshot.batches:
            before = state(model)
            optimizer.zero_grad()
            classify(model, batch).backward()
            optimizer.step()
            for name in expected:
                expected[name] += before[name] * (state(model)[name] - before[name]) / 0.25
    torch.testing.assert_close(score(snapshot), expected)


def test_movement_counts_accumulated_gradients_once() -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)
    model = copy.deepcopy(snapshot.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start, score = state(model), Movement()
    with score.watch(model):
        for batch in snapshot.batches:
            classify(model, batch).backward()
        optimizer.step()
    expected = -start["0.weight"] * model[0].weight.grad
    torch.testing.assert_close(score(snapshot)["0.weight"], expected)


def test_movement_starts_anew_and_stops_with_its_context() -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)
    score = watched(Movement(), snapshot)
    once = score(snapshot)
    other = copy.deepcopy(snapshot.model)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    classify(other, snapshot.batches[0]).backward()
    optimizer.step()
    torch.testing.assert_close(score(snapshot), once, rtol=0, atol=0)
    with score.watch(snapshot.model):
        assert score.state == {}


def test_movement_sums_bfloat16_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    score = Movement()
    with score.watch(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(1000):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
    assert score.state["weight"].item() == -1000  # bfloat16 stops at -256


def test_movement_that_watched_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"watch a training first, it saw no update of '0.weight'"):
        Movement()(snapshot_of(perceptron(3, 3), 3))


def test_a_restored_movement_is_the_one_that_watched() -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)
    score, other = watched(Movement(), snapshot), Movement()
    other.restore(score.state)
    torch.testing.assert_close(other(snapshot), score(snapshot), rtol=0, atol=0)
