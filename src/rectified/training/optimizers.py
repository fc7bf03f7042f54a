"""The optimiser, and how its rate moves over a training."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from rectified.training.settings import FitConfig


def learning_rate_factor(config: FitConfig, progress: float) -> float:
    """The rate's factor at `progress` in [0, 1) of the training.

    Example:
        >>> config = FitConfig(schedule="steps", warmup=0.1, drops=(0.5, 0.75))
        >>> [round(learning_rate_factor(config, p), 3) for p in (0.05, 0.3, 0.6, 0.8)]
        [0.5, 1.0, 0.1, 0.01]
    """
    if progress < config.warmup:
        return progress / config.warmup
    rest = (progress - config.warmup) / (1 - config.warmup)
    if config.schedule == "steps":
        return 0.1 ** sum(progress >= drop for drop in config.drops)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return 1 - rest if config.schedule == "linear" else 1.0


def make_optimizer(
    model: nn.Module, config: FitConfig, *, rate: Tensor | None = None
) -> torch.optim.Optimizer:
    """The optimiser that `config` names, over all parameters that want a gradient.

    Args:
        model: the network, where it is trained.
        config: which optimiser, and how it is set.
        rate: a number on the GPU that takes the place of the rate: a graph can hold the optimiser.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    on_gpu = any(parameter.device.type == "cuda" for parameter in parameters)
    first: float | Tensor = config.learning_rate
    if rate is not None:
        first = rate
    elif on_gpu:  # float32, as the fused kernels read it
        first = torch.full((), config.learning_rate, device=parameters[0].device)
    decay = config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            first,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=decay,
            # on a CPU the fused one gains nothing, and rounds otherwise
            foreach=not on_gpu,
            fused=on_gpu,
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, first, weight_decay=decay, fused=True, capturable=rate is not None)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a `state_dict` of this network's optimiser, which may come from another device.

    How the optimiser works (its rate, its kernels) is what it was made with; what it remembers lies
    as the parameters do in memory, which fused kernels need.
    """
    own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(deepcopy(state))
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
        for parameter in group["params"]:
            memory = optimizer.state[parameter]
            for name, value in memory.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    memory[name] = torch.empty_like(parameter).copy_(value)
                elif isinstance(value, Tensor):
                    memory[name] = value.to(parameter.device)
