"""Movement: weights that a training moves away from zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rectified.errors import UserError
from rectified.pruning.masks import named_weights
from rectified.pruning.scores.derivatives import reduce_across_processes
from rectified.pruning.scores.score import Score, Scores
from rectified.pruning.scores.snapshot import Snapshot


class Movement(Score):
    """The sum of -w * g over all updates of a training: weights that move away from zero stay.

    For plain gradient descent -w * g is the growth of w^2 / 2 by each update, over the learning
    rate. It is read just before each optimiser step, where the gradient is complete (accumulated,
    unscaled, clipped and averaged over processes) and the weight not yet updated:

        score = Movement()
        with score.watch(model):
            ...                                # train with any torch optimiser
        score(snapshot)

    Raises:
        UserError: when called before a training was watched.

    References:
        Sanh, Wolf, Rush: Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020,
        arXiv 2005.07683, eq. 5.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> score = Movement()
        >>> with score.watch(model):
        ...     model(torch.tensor([[3.0]])).sum().backward()
        ...     optimizer.step()
        >>> score.state
        {'weight': tensor([[-6.]])}
    """

    def __init__(self) -> None:
        self._sums: Scores = {}

    @property
    def state(self) -> Scores:
        """The sums so far, by name; entering `watch` starts from nothing."""
        return self._sums

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take sums that were begun elsewhere."""
        self._sums = dict(state)

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Sum over the optimiser steps of `model`'s parameters while the context is open.

        Args:
            model: the network in training, wrapped or not.
        """
        self._sums = {}
        names = {parameter: name for name, parameter in named_weights(model).items()}

        def before_step(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter in names and parameter.grad is not None:
                        self._add(names[parameter], parameter.detach(), parameter.grad)

        handle = register_optimizer_step_pre_hook(before_step)
        try:
            yield
        finally:
            handle.remove()

    def _add(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        # bfloat16 would round most updates of a long training away.
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        self._sums[name] = self._sums.get(name, 0.0) - weight * gradient

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        unseen = snapshot.masks.keys() - self._sums.keys()
        if unseen:
            raise UserError(
                f"Movement must watch a training first, it saw no update of {min(unseen)!r}"
            )
        return reduce_across_processes({name: self._sums[name] for name in snapshot.masks})
