"""Within hands on all that a score is."""

from __future__ import annotations

import torch
from torch import nn

from rectified.pruning.scores import Movement, Random, Snapshot, SynFlow, Within, magnitude


def snapshot() -> Snapshot:
    weights = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}
    masks = {name: torch.ones(1, dtype=torch.bool) for name in weights}
    return Snapshot(nn.Identity(), weights, weights, masks)


def test_other_layers_are_never_dropped() -> None:
    assert Within(magnitude)(snapshot()) == magnitude(snapshot())
    assert Within(magnitude, ("b",))(snapshot())["a"].tolist() == [float("inf")]


def test_what_a_score_needs_is_handed_on() -> None:
    assert Within(SynFlow()).rounds == SynFlow.rounds
    assert Within(Movement()).watches
    assert not Within(magnitude).watches
    assert (Within(magnitude).rounds, Within(magnitude).state) == (1, {})


def test_the_score_within_watches() -> None:
    model, movement = nn.Linear(1, 1, bias=False), Movement()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Within(movement).watch(model):
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    assert movement.state.keys() == {"weight"}


def test_the_state_of_the_score_within_is_kept_and_restored() -> None:
    random = Random(torch.Generator().manual_seed(3))
    within = Within(random, ("b",))
    before = within.state
    first = within(snapshot())["b"]
    within.restore(before)
    random(snapshot())
    within.restore(before)
    assert torch.equal(within(snapshot())["b"], first)
