"""What is asked of every network that flows are learnt with."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def stirred(network: nn.Module) -> nn.Module:
    """The same network with no weight at zero, where some layers begin on purpose."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def unreached(network: nn.Module, x: Tensor, labels: Tensor | None) -> list[str]:
    """Parameters that get no gradient from a prediction."""
    t = torch.linspace(0.1, 0.9, len(x))
    given = (x, t) if labels is None else (x, t, labels)
    stirred(network)(*given).square().sum().backward()
    return [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not (parameter.grad != 0).any()
    ]
