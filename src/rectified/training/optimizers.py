"""The optimiser, and how its rate moves over a training."""

from __future__ import annotations

import math

import torch
from torch import nn

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


def make_optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """The optimiser that `config` names, over all parameters that want a gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=decay,
            foreach=True,
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, weight_decay=decay, fused=True)
