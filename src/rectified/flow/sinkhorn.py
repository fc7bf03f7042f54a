"""Entropic coupling of a batch (Sinkhorn): near the optimal assignment, on the device, softer.

The plan P between n source points and n target points minimises

    sum_ji P_ji |x0_i - x1_j|^2 + epsilon sum_ji P_ji log P_ji,    rows and columns of P sum to 1/n

and is P_ji = exp((f_i + g_j - |x0_i - x1_j|^2) / epsilon), whose potentials f and g are found by
meeting the two conditions in turn. Every target point is used once and draws its source from its
row of the plan, so that every source point is used once on average. epsilon -> 0 is the assignment
of `MinibatchOT`, epsilon -> infinity independent pairs.

References:
    Cuturi, Sinkhorn distances, 2013, arXiv 1306.0895; Pooladian et al., 2023, arXiv 2304.14772
    (drawing pairs from the plan of a batch); Tong et al., 2023, arXiv 2302.00482.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.flow.couplings import Source, costs, gaussian
from rectified.flow.paths import Points


@dataclass(frozen=True)
class Sinkhorn:
    """Pairs from the entropic plan of a batch.

    Args:
        source: of the points that are paired.
        epsilon: of the entropy; the clouds are first scaled to spread 1, so it has no unit.
        iterations: of the potentials.

    Example:
        >>> x0, x1 = Sinkhorn()(torch.zeros(5, 2), torch.Generator().manual_seed(0))
        >>> x0.shape
        torch.Size([5, 2])
    """

    source: Source = gaussian
    epsilon: float = 0.05
    iterations: int = 100

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise UserError(f"epsilon must be positive, got {self.epsilon}")
        if self.iterations < 1:
            raise UserError(f"iterations must be at least 1, got {self.iterations}")

    def __call__(
        self, x1: Points, generator: torch.Generator | None = None, /
    ) -> tuple[Points, Points]:
        """Draw source points, and for every target one of them."""
        x0 = self.source(x1, generator)
        rows = plan(costs(x0, x1), epsilon=self.epsilon, iterations=self.iterations)
        place = generator.device if generator is not None else rows.device
        chosen = torch.multinomial(rows.to(place), 1, generator=generator)[:, 0]
        return x0[chosen.to(x0.device)], x1


def plan(
    cost: Float[Tensor, "targets sources"], *, epsilon: float, iterations: int = 100
) -> Float[Tensor, "targets sources"]:
    """n times the plan: a row per target that sums to 1, columns that sum to 1 in the limit.

    Args:
        cost: of every pair, as many targets as sources.
        epsilon: of the entropy, in the unit of the cost.
        iterations: of the potentials, in logarithms, where small epsilon does not underflow.

    Example:
        >>> plan(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), epsilon=0.1).round()
        tensor([[1., 0.],
                [0., 1.]])
    """
    kernel = -cost / epsilon
    sources = kernel.new_zeros(kernel.shape[1])
    for _ in range(iterations):
        targets = -torch.logsumexp(kernel + sources, 1, keepdim=True)
        sources = -torch.logsumexp(kernel + targets, 0)
    return torch.softmax(kernel + sources, 1)
