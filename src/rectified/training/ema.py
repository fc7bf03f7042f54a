"""Moving averages of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rectified.training.protocols import Step


class EMA:
    """Exponential moving average of a network's parameters; its buffers are copied.

    A hook: `fit` keeps one when `config.ema > 0` and leaves the network with the averaged weights.

    Args:
        model: the network to follow.
        decay: in [0, 1). Early on the smaller (1 + n) / (10 + n) counts, so that the average
            forgets the initial weights.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> average = EMA(model, 0.9)
        >>> average.update(model); average.updates
        1
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._followed: tuple[nn.Module, dict[str, Tensor]] | None = None

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the network's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = self._live(model)
        moving = [name for name, value in live.items() if value.is_floating_point()]
        averages, values = [self.state[n] for n in moving], [live[n] for n in moving]
        torch._foreach_lerp_(averages, values, 1 - decay)
        for name, value in live.items():
            if not value.is_floating_point():
                self.state[name].copy_(value)

    def _live(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of a network's state, looked up once: that costs as much as a small step."""
        if self._followed is None or self._followed[0] is not model:
            self._followed = (model, model.state_dict(keep_vars=True))
        return self._followed[1]

    def __call__(self, step: Step) -> None:
        self.update(step.model)
