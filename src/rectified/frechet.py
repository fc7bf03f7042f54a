"""The Fréchet distance between two samples of features, whatever they are features of.

    d^2 = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1^{1/2} C_2 C_1^{1/2})^{1/2}

between their means and covariances: what FID computes on Inception's features, and what the
scattering and flow packages offer on others. Two samples of n rows from one distribution are not
at distance 0 but of the order of features / n, so compare equal numbers, and give the distance of
real data to real data as the floor.

References:
    Dowson, Landau, The Fréchet distance between multivariate normal distributions, 1982; Heusel et
    al., 2017, arXiv 1706.08500.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError


def gaussian_distance(
    first: Float[Tensor, "n features"], second: Float[Tensor, "m features"]
) -> float:
    """The squared Fréchet distance between normal distributions fitted to two samples.

    Args:
        first: at least two rows.
        second: at least two rows.

    Raises:
        UserError: if a sample has fewer than two rows.

    Example:
        >>> points = torch.tensor([[0.0], [2.0]])
        >>> gaussian_distance(points, points + 3)
        9.0
    """
    if min(len(first), len(second)) < 2:
        raise UserError(f"both samples need two rows or more, got {len(first)} and {len(second)}")
    means, roots = zip(*(_moments(one.double()) for one in (first, second)), strict=True)
    # with C = A A^T, the singular values of A_1^T A_2 are the roots of the eigenvalues
    overlap = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    spread = sum(float(root.square().sum()) for root in roots)
    apart = float((means[0] - means[1]).square().sum())
    return max(0.0, apart + spread - 2 * float(overlap))


def _moments(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and a square root A of the covariance A A^T."""
    mean = sample.mean(0)
    triangle = torch.linalg.qr((sample - mean) / (len(sample) - 1) ** 0.5).R
    return mean, triangle.T
