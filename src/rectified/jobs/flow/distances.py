"""Distances: how far samples are from the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rectified.data import DISTRIBUTIONS, draw_points
from rectified.flow import feature_distance, wasserstein2
from rectified.jobs.flow.data import Transfer
from rectified.jobs.flow.features import Classifier


@dataclass(frozen=True, eq=False)
class Distance:
    """A distance of samples from the reference.

    Attributes:
        name: w2 (exact, points, in the unit of learning) or frechet (features of a classifier).
        measure: samples to their distance.
        floor: the same between real samples: of the training set and of the reference.
        protocol: what was compared, in words.
    """

    name: str
    measure: Callable[[Tensor], float]
    floor: float
    protocol: str


def point_distance(transfer: Transfer, count: int, seed: int) -> Distance:
    """Exact 2-Wasserstein distance to as many reference points."""
    reference = transfer.reference[:count]
    name = transfer.target.name
    fresh = (
        transfer.scaled(draw_points(name, len(reference), 3 * seed + 2))
        if name in DISTRIBUTIONS
        else transfer.train[: len(reference)]
    )
    return Distance(
        "w2",
        lambda samples: wasserstein2(samples[: len(reference)].cpu(), reference[: len(samples)]),
        wasserstein2(fresh, reference[: len(fresh)]),
        f"exact W2 of {len(reference)} samples to as many held-out points",
    )


def image_distance(transfer: Transfer, classifier: Classifier, count: int) -> Distance:
    """Squared Fréchet distance of a classifier's features."""
    reference = transfer.reference
    device = next(classifier.network.parameters()).device

    def features(x: Tensor) -> Tensor:
        return classifier.network.features(x.to(device)).cpu()

    return Distance(
        "frechet",
        lambda samples: feature_distance(features, samples.clamp(-1, 1), reference),
        feature_distance(features, transfer.train[: max(count, 2)], reference),
        f"Fréchet distance of {count} samples to {len(reference)} images on the hidden layer "
        f"of a classifier with {classifier.accuracy:.1%} test accuracy",
    )
