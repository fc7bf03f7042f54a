"""Less at a time where memory runs out, said aloud, with the same result.

Pairs are made, and gradients summed, over parts of a batch. When a device has no room for a part,
parts become half as large and the work in hand is done again; nothing that was finished is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.training import Batch, Objective

Result = TypeVar("Result")


class Budget:
    """The number of examples that are worked on at once.

    Args:
        size: to begin with, at least 1.
        say: gets a line whenever there must be fewer.

    Example:
        >>> budget = Budget(8, print)
        >>> def work(size):
        ...     if size > 3:
        ...         raise torch.OutOfMemoryError
        ...     return size
        >>> budget.run(work)
        out of memory with 8 examples at a time: going on with 4
        out of memory with 4 examples at a time: going on with 2
        2
    """

    def __init__(self, size: int, say: Callable[[str], None]) -> None:
        if size < 1:
            raise UserError(f"batch_size must be at least 1, got {size}")
        self.size = size
        self.say = say

    def run(self, work: Callable[[int], Result]) -> Result:
        """Do work with as many examples at a time as there is room for.

        Raises:
            UserError: if one alone is too many.
        """
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            # outside of the handler, whose error holds on to all that the work had allocated
            self._shrink()

    def over(self, count: int, work: Callable[[slice], Tensor]) -> Tensor:
        """Rows of `count` examples, from work on as many at a time as there is room for."""
        parts: list[Tensor] = []
        done = 0
        while done < count:
            parts.append(self.run(_from(done, work)))
            done += len(parts[-1])
        return torch.cat(parts)

    def _shrink(self) -> None:
        if self.size == 1:
            raise UserError(
                "out of memory with one example at a time: take gradient_checkpointing, precision "
                "bf16, a lora_rank, a smaller pipeline or another device"
            )
        smaller = self.size // 2
        self.say(f"out of memory with {self.size} examples at a time: going on with {smaller}")
        self.size = smaller
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _from(first: int, work: Callable[[slice], Tensor]) -> Callable[[int], Tensor]:
    return lambda size: work(slice(first, first + size))


def _is_out_of_memory(error: Exception) -> bool:
    words = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "out of memory" in words
        or "not enough memory" in words  # the CPU's allocator
    )


class InPieces:
    """An objective whose gradient is summed over parts of the batch, as large as there is room for.

    The gradient is that of the whole batch. It is there when the call returns; what is returned is
    the loss as a leaf, so that `rectified.training.fit` has nothing left to go back through.

    Args:
        objective: the mean loss of a batch.
        budget: examples at a time.
    """

    def __init__(self, objective: Objective, budget: Budget) -> None:
        self.objective = objective
        self.budget = budget

    def __call__(self, model: nn.Module, batch: Batch, /) -> Float[Tensor, ""]:
        return self.budget.run(lambda size: self._summed(model, batch, size))

    def _summed(self, model: nn.Module, batch: Batch, size: int) -> Tensor:
        model.zero_grad(set_to_none=True)  # of a try that ran out of memory
        total = batch[0].new_zeros(())
        for part in zip(*(values.split(size) for values in batch), strict=True):
            loss = self.objective(model, part) * (len(part[0]) / len(batch[0]))
            with torch.autocast(loss.device.type, enabled=False):
                loss.backward()
            total = total + loss.detach()
        return total.requires_grad_()
