"""Every score of the table through one list of properties."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import rectified.pruning
from rectified.errors import UserError
from rectified.pruning.scores import (
    SCORES,
    Gradient,
    GraSP,
    Score,
    ScoreFunction,
    Snapshot,
    as_score,
    magnitude,
    named_score,
)
from tests.pruning.scores.snapshots import perceptron, residual, snapshot_of, state, watched


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


MAKERS: dict[str, Callable[[], ScoreFunction]] = {
    **{name: lambda row=row: row(generator()) for name, row in SCORES.items()},
    "gradient over batches": lambda: Gradient(batches=3),
    "grasp over batches": lambda: GraSP(batches=2),
}
OF_WEIGHTS = [name for name in MAKERS if name != "random"]


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[Snapshot], Score]:
    """A score that has watched a training of the snapshot it is made for."""
    return lambda snapshot: watched(MAKERS[request.param](), snapshot)


of_weights = pytest.mark.parametrize("make", OF_WEIGHTS, indirect=True)


def test_every_masked_weight_gets_a_finite_score_of_its_shape(make) -> None:
    snapshot = residual()
    scores = make(snapshot)(snapshot)
    assert scores.keys() == snapshot.masks.keys()
    for name, mask in snapshot.masks.items():
        assert scores[name].shape == mask.shape
        assert scores[name].isfinite()[mask].all()
        assert not scores[name].requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_are_left_alone(make, training: bool) -> None:
    snapshot = residual()
    snapshot.model.train(training)
    snapshot.model.norm.eval()
    score = make(snapshot)
    before = copy.deepcopy([state(snapshot.model), snapshot.trained, snapshot.initial])
    modes = [module.training for module in snapshot.model.modules()]
    random_state = torch.get_rng_state()
    score(snapshot)
    after = [state(snapshot.model), snapshot.trained, snapshot.initial]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert [module.training for module in snapshot.model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in snapshot.model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_equal_snapshots_get_equal_scores(make) -> None:
    first, second = (make(s)(s) for s in (residual_with_fixed_model(), residual_with_fixed_model()))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def residual_with_fixed_model() -> Snapshot:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return residual()


@of_weights
def test_pruned_weights_count_as_zero(make) -> None:
    snapshot = snapshot_of(perceptron(5, 6, 4, 3), 5)
    score = make(snapshot)

    def revived(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        masks = snapshot.masks
        return {n: torch.where(masks[n], w, 9.0) if n in masks else w for n, w in weights.items()}

    other = replace(snapshot, trained=revived(snapshot.trained), initial=revived(snapshot.initial))
    clean, spoiled = score(snapshot), score(other)
    for name, mask in snapshot.masks.items():
        torch.testing.assert_close(clean[name][mask], spoiled[name][mask], rtol=0, atol=0)


@of_weights
def test_permuting_hidden_units_permutes_the_scores(make) -> None:
    snapshot = snapshot_of(perceptron(5, 6, 3), 5)
    order = torch.tensor([3, 0, 5, 1, 2, 4])

    def permuted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {"0.weight": lambda v: v[order], "0.bias": lambda v: v[order]}
        moved["2.weight"] = lambda v: v[:, order]
        return {name: moved.get(name, lambda v: v)(value) for name, value in tensors.items()}

    other = replace(
        snapshot,
        trained=permuted(snapshot.trained),
        initial=permuted(snapshot.initial),
        masks=permuted(snapshot.masks),
    )
    expected = permuted(make(snapshot)(snapshot))
    actual = make(other)(other)
    for name, mask in other.masks.items():
        torch.testing.assert_close(actual[name][mask], expected[name][mask])


def test_a_name_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(UserError, match="unknown score 'magnitud'; choose from magnitude, layer_"):
        named_score("magnitud", generator())


@pytest.mark.parametrize("name", SCORES)
def test_a_named_score_says_what_it_needs(name: str) -> None:
    score = named_score(name, generator())
    assert isinstance(score, Score)
    assert (score.rounds, score.watches, score.layerwise) == (
        100 if name == "synflow" else 1,
        name == "movement",
        name == "layer_magnitude",
    )
    score.restore(score.state)
    assert bool(score.state) == (name == "random")


@pytest.mark.parametrize("name", SCORES)
def test_a_named_score_can_be_imported_from_the_package(name: str) -> None:
    made = SCORES[name](generator())
    method = type(made) if isinstance(made, Score) else made
    assert getattr(rectified.pruning, method.__name__) is method


def test_a_function_and_a_score_are_driven_alike() -> None:
    snapshot, score = residual(), as_score(magnitude)
    torch.testing.assert_close(score(snapshot), magnitude(snapshot), rtol=0, atol=0)
    with score.watch(snapshot.model):
        assert (score.rounds, score.watches, score.layerwise, score.state) == (1, False, False, {})
    assert as_score(score) is score
