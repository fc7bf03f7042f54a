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
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from rectified.gang import address, run
from rectified.pruning.sparse import kernels

GANG_WORK = 20_000  # vector operations, about 10 microseconds: less is not worth a hand-over


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
        self._built = (operations, tables, strides, size, list(shapes), lanes, threads)
        self._size = -(-(size + kernels.SLACK) // 16) * 16  # an arena for each thread
        self._shapes, self._lanes, self._threads = list(shapes), lanes, threads
        self._job = kernels.execute if tables[1].dtype == np.uint16 else kernels.execute_wide
        self._words = np.zeros(kernels.WORDS, np.int64)
        self._words[: kernels.PORTS] = [
            address(operations),
            len(operations),
            *(address(table) for table in tables),
        ]
        self._words[kernels.STRIDES] = address(strides)
        self._words[kernels.ARENA_FLOATS] = self._size
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
        threads, counters = self._threads, 0
        if items < threads and items * self._work > GANG_WORK:
            shared = np.zeros(2 * items * len(self._built[0]), np.int64)
            counters = address(shared)
        elif items < threads:
            threads = 1
        arena, places = self._borrow(), np.array(ports, np.int64)
        words = self._words.copy()
        words[kernels.PORTS], words[kernels.ARENA] = address(places), arena.data_ptr()
        words[kernels.ITEMS], words[kernels.SAMPLES] = items, samples
        words[kernels.COUNTERS] = counters
        run(self._job, words, threads, threads)
        self._arenas.append(arena)
        return outputs

    def __reduce__(self) -> tuple[type[Program], tuple[Any, ...]]:
        return Program, self._built  # a copy has its own addresses and arenas

    def _borrow(self) -> Tensor:
        try:
            return self._arenas.pop()
        except IndexError:
            # Zeros once: no operation ever writes into a halo.
            return torch.zeros(self._threads * self._size)


def _work(operations: np.ndarray, starts: NDArray[np.generic]) -> int:
    total = 0
    for operation in operations[operations["kind"] == kernels.SPARSE]:
        first = int(operation["starts"])
        last = first + int(operation["blocks"] * operation["planes"])
        total += int(starts[last] - starts[first]) * int(operation["vectors"])
    return total
