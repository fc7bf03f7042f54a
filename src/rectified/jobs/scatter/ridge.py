"""A linear classifier: ridge regression on one-hot labels, its penalty chosen on held-out data.

    W = argmin |X W - Y|^2 + penalty |W|^2,     columns of X and Y centred

Solved through whichever of X^T X and X X^T is smaller; each is made once for all penalties.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-3, 2))
"""As shares of the mean squared norm of a row."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted classifier.

    Attributes:
        weights: a column per class.
        centre: subtracted from features.
        offset: the mean of the one-hot labels.
        penalty: that was chosen, as a share of the mean squared norm of a row.
    """

    weights: Float[Tensor, "features classes"]
    centre: Float[Tensor, " features"]
    offset: Float[Tensor, " classes"]
    penalty: float

    def accuracy(self, features: Float[Tensor, "n features"], labels: Int64[Tensor, " n"]) -> float:
        """The share of correct answers."""
        scores = (features - self.centre) @ self.weights + self.offset
        return float((scores.argmax(1) == labels).double().mean())


def fit_ridge(
    features: Float[Tensor, "n features"],
    labels: Int64[Tensor, " n"],
    held_out: tuple[Float[Tensor, "m features"], Int64[Tensor, " m"]],
) -> Ridge:
    """Fit for every penalty, and keep the one that is best on the held-out examples.

    Args:
        features: at least one row per class.
        labels: class numbers.
        held_out: features and labels on which the penalty is chosen; the larger one if equal.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.2]])
        >>> y = torch.tensor([0, 0, 1, 1])
        >>> fit_ridge(x, y, (x, y)).accuracy(x, y)
        1.0
    """
    centre = features.mean(0)
    rows = features - centre
    targets = torch.nn.functional.one_hot(labels).to(rows.dtype)
    offset = targets.mean(0)
    is_dual = len(rows) <= rows.shape[1]
    gram = (rows @ rows.T if is_dual else rows.T @ rows).double()
    right = (targets - offset if is_dual else rows.T @ (targets - offset)).double()
    unit = float(rows.square().sum() / len(rows)) or 1.0
    fits = []
    for penalty in PENALTIES:
        weights = _solve(gram, right, penalty * unit).to(rows.dtype)
        weights = rows.T @ weights if is_dual else weights
        fits.append(Ridge(weights, centre, offset, penalty))
    return max(reversed(fits), key=lambda one: one.accuracy(*held_out))


def _solve(gram: Tensor, right: Tensor, penalty: float) -> Tensor:
    """(gram + penalty I)^-1 right."""
    shifted = gram.clone()
    shifted.diagonal().add_(penalty)
    return torch.cholesky_solve(right, torch.linalg.cholesky(shifted))
