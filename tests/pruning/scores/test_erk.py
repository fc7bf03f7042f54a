"""ERK against the rule's own densities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rectified.pruning.scores import ERK, Snapshot, magnitude
from rectified.pruning.threshold import drop_smallest
from tests.pruning.scores.snapshots import perceptron, residual, snapshot_of


def erk_densities(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """min(1, c * sum(shape) / prod(shape)), with the c at which `density` is kept, by bisection."""
    slopes = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}

    def at(scale: float) -> dict[str, float]:
        return {name: min(1.0, scale * slope) for name, slope in slopes.items()}

    def kept(densities: dict[str, float]) -> float:
        return sum(densities[name] * math.prod(shape) for name, shape in shapes.items())

    total = sum(math.prod(shape) for shape in shapes.values())
    low, high = 0.0, 1 / min(slopes.values())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(at(middle)) < density * total else (low, middle)
    return at(high)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9, 1.0])
def test_erk_scores_cut_every_layer_to_its_erk_density_at_any_density(density: float) -> None:
    snapshot = snapshot_of(perceptron(5, 40, 30, 3), 5, share=1.1)
    shapes = {name: tuple(mask.shape) for name, mask in snapshot.masks.items()}
    total = sum(mask.numel() for mask in snapshot.masks.values())
    masks = drop_smallest(ERK()(snapshot), snapshot.masks, total - round(density * total))
    for name, wanted in erk_densities(shapes, density).items():
        assert abs(int(masks[name].sum()) - wanted * masks[name].numel()) <= 1 + 1e-9


def test_erk_ranks_within_a_layer_as_the_score_does() -> None:
    snapshot = residual()
    scores, ranked = magnitude(snapshot), ERK(within=magnitude)(snapshot)
    for name, mask in snapshot.masks.items():
        assert torch.equal(scores[name][mask].argsort(), ranked[name][mask].argsort())


def test_erk_never_drops_what_its_score_never_drops() -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)

    def protected(_: Snapshot) -> dict[str, Tensor]:
        return {"0.weight": torch.full((3, 3), torch.inf)}

    assert ERK(protected)(snapshot)["0.weight"].isinf().all()
