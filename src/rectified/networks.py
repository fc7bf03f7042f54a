"""Other people's networks, called as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in evaluation mode; afterwards every module has its own mode again.

    A network may do more upon `train()` than set a flag (merge and unmerge the weights of an
    adapter, keep a part frozen), so modes are put back by calling it, and then one by one to what
    they were.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model): print(model.training)
        False
        >>> [module.training for module in model.modules()]
        [True, True, False]
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, was_training in modes.items():  # outer modules first
            if module.training != was_training:
                module.train(was_training)
        for module, was_training in modes.items():
            module.training = was_training
