"""A lower bound on a network's constant: the two signals that it drives apart most.

    ratio = |||Phi(f) - Phi(h)||| / ||f - h||  <=  c

Random pairs are weak evidence, since they hardly ever meet the bins that matter; gradient ascent on
the ratio finds pairs that come close to c. A correct network stays at or below its constant and,
unless it loses energy, above nine tenths of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor

from rectified.scattering.network import ScatteringNetwork


def distance(
    first: Sequence[Num[Tensor, "..."]], second: Sequence[Num[Tensor, "..."]]
) -> Float[Tensor, ""]:
    """|||Phi(f) - Phi(h)||| of features by depth.

    Example:
        >>> distance([torch.zeros(2)], [torch.tensor([3.0, 4.0])])
        tensor(5.)
    """
    return sum_of_squares([a - b for a, b in zip(first, second, strict=True)]).sqrt()


def sum_of_squares(features: Sequence[Num[Tensor, "..."]]) -> Float[Tensor, ""]:
    """|||Phi(f)|||^2 over all depths.

    Example:
        >>> sum_of_squares([torch.tensor([3.0]), torch.tensor([4j])])
        tensor(25.)
    """
    return torch.stack([one.abs().square().sum() for one in features]).sum()


def adversarial_ratio(
    network: ScatteringNetwork,
    *,
    generator: torch.Generator,
    steps: int = 200,
    channels: int = 1,
    is_complex: bool = False,
    device: torch.device | str = "cpu",
) -> float:
    """The largest ratio that gradient ascent from random signals finds, in float64.

    Args:
        network: any.
        generator: of the first pair.
        steps: of the ascent, at least 1.
        channels: of the signals.
        is_complex: whether the signals are complex.
        device: where to compute.

    Example:
        >>> from rectified.scattering import Layer, ScatteringNetwork, wavelets
        >>> network = ScatteringNetwork([Layer(wavelets(J=1, L=2))], (8, 8))
        >>> ratio = adversarial_ratio(network, generator=torch.Generator().manual_seed(0))
        >>> 0.9 < ratio <= 1 + 1e-9
        True
    """
    dtype = torch.complex128 if is_complex else torch.float64
    pair = torch.randn(2, channels, *network.grid, generator=generator, dtype=dtype).to(device)
    pair.requires_grad_()
    optimizer = torch.optim.Adam([pair], lr=0.05)
    best = 0.0
    for _ in range(steps):
        found = network(pair)
        moved = distance([one[0] for one in found], [one[1] for one in found])
        ratio = moved / torch.linalg.vector_norm(pair[0] - pair[1])
        best = max(best, ratio.item())
        optimizer.zero_grad()
        (-ratio).backward()
        optimizer.step()
    return best
