"""A sparse program: a chain of layers as one table of operations, run by one compiled interpreter.

A call of a PyTorch layer costs 5 to 20 microseconds beside its arithmetic, and a convolution of a
small network at 95 % sparsity has less than that to compute. So a network is not run layer by
layer: `builder.Builder` writes it down as a table, and `Program` hands that table to
`kernels.execute`, once a call. Bias, residual sum and ReLU are part of the convolution that
comes before them.

Threads share the items of a batch, or, if there is only one, the planes of every operation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from rectified.pruning.sparse import kernels
from rectified.pruning.sparse.gang import together

GANG_WORK = 500_000  # vector operations, about 200 microseconds: less is not worth a hand-over
SHARES = 2  # parts of an operation for each thread, so that a late one delays little


class Program:
    """A built program; call it with one tensor an input.

    It may be called from several threads at once: each call takes an arena of its own.
    """

    def __init__(
        self,
        operations: np.ndarray,
        tables: tuple[NDArray[np.generic], ...],
        strides: NDArray[np.int64],
        size: int,
        shapes: Sequence[tuple[int, ...]],
        lanes: int,
        threads: int,
    ) -> None:
        self._operations, self._tables, self._strides = operations, tables, strides
        self._size, self._shapes, self._lanes, self._threads = size, list(shapes), lanes, threads
        self._arenas: list[Tensor] = []
        self._work = _work(operations, tables[2])

    def __call__(self, *inputs: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch ..."]]:
        """Run on a batch.

        Args:
            inputs: float32 tensors in the CPU's memory, of the shapes that the builder was told.

        Returns:
            One tensor an output.
        """
        samples = inputs[0].shape[0]
        items = -(-samples // self._lanes)
        inputs = tuple(x.contiguous() for x in inputs)
        outputs = [inputs[0].new_empty(samples, *shape) for shape in self._shapes]
        ports = [0, *(x.data_ptr() for x in inputs), *(y.data_ptr() for y in outputs)]
        ranks = self._threads
        if ranks > 1 and items >= ranks:
            done = together(lambda rank: self._items(ports, items, samples, rank, ranks), ranks)
        elif ranks > 1 and items * self._work > GANG_WORK:
            done = self._side_by_side(ports, items, samples)
        else:
            done = False
        if not done:
            self._items(ports, items, samples, 0, 1)
        return outputs

    def _items(self, ports: list[int], items: int, samples: int, rank: int, ranks: int) -> None:
        """Run this thread's items."""
        mine = (items * rank // ranks, items * (rank + 1) // ranks)
        arena = self._borrow()
        self._execute(arena, ports, mine, samples, 1, np.zeros(0, np.int64))
        self._arenas.append(arena)

    def _side_by_side(self, ports: list[int], items: int, samples: int) -> bool:
        """Let all threads share every operation."""
        arena, shares = self._borrow(), SHARES * self._threads
        counters = np.zeros(2 * items * len(self._operations), np.int64)
        done = together(
            lambda rank: self._execute(arena, ports, (0, items), samples, shares, counters),
            self._threads,
        )
        self._arenas.append(arena)
        return done

    def _execute(
        self,
        arena: Tensor,
        ports: list[int],
        items: tuple[int, int],
        samples: int,
        shares: int,
        counters: NDArray[np.int64],
    ) -> None:
        places = np.array([arena.data_ptr(), *ports[1:]], np.int64)
        kernels.execute(
            self._operations,
            self._tables,
            places,
            self._strides,
            items,
            samples,
            shares,
            counters,
        )

    def _borrow(self) -> Tensor:
        try:
            return self._arenas.pop()
        except IndexError:
            # Zeros once: no operation ever writes into a halo.
            return torch.zeros(self._size + kernels.SLACK)


def _work(operations: np.ndarray, starts: NDArray[np.generic]) -> int:
    total = 0
    for operation in operations[operations["kind"] == kernels.SPARSE]:
        first = int(operation["starts"])
        last = first + int(operation["blocks"] * operation["planes"])
        total += int(starts[last] - starts[first]) * int(operation["vectors"])
    return total
