"""Schemes: which estimators a network's layers are trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rectified.binary.estimators.surrogate import Surrogate


@dataclass(frozen=True)
class Scheme:
    """One way to train: an estimator for the weights and one for what they meet.

    Attributes:
        title: in reports.
        weights: makes the weights' estimator; None for the network in full precision.
        activations: makes that of the inputs; as `weights` by default.
        standardize: whether weights are standardised before their sign.
        is_control: whether it is there for others to be compared with.

    Example:
        >>> from rectified.binary.estimators import STE
        >>> Scheme("STE", STE).standardize
        False
    """

    title: str
    weights: Callable[[], Surrogate] | None
    activations: Callable[[], Surrogate] | None = None
    standardize: bool = False
    is_control: bool = False
