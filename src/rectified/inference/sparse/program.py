"""A sparse program: a chain of layers as one table of operations, run by one compiled interpreter.

A call of a PyTorch layer costs 5 to 20 microseconds beside its arithmetic, and a convolution of a
small network at 95 % sparsity has less than that to compute. So a network is not run layer by
layer: `builder.Builder` writes it down as a table, and `Program` hands that table to
`kernels.execute`, once per call. Bias, residual sum and ReLU are part of the convolution that
comes before them.

Threads share the items of a batch, or, if there is only one, the planes of every operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from rectified.inference.sparse import kernels
from rectified.inference.threads import address, run

GANG_WORK = 20_000  # vector operations, about 10 microseconds: less is not worth a hand-over


class Program:
    """A built program; call it with one tensor per input.

    It may be called from several threads at once: each call takes an arena of its own.
    """

    def __init__(
        self,
        operations: np.ndarray,
        tables: tuple[NDArray[np.generic], ...],
        strides: NDArray[np.int64],
        size: int,
        scratch: int,
        shapes: Sequence[tuple[int, ...]],
        lanes: int,
        threads: int,
    ) -> None:
        self._built = (operations, tables, strides, size, scratch, list(shapes), lanes, threads)
        # An arena for each thread, its scratch at the end; all begin on cache lines.
        self._size = -(-(size + kernels.SLACK) // 16) * 16 + scratch
        self._shapes, self._lanes, self._threads = list(shapes), lanes, threads
        self._job = kernels.execute if tables[1].dtype == np.uint16 else kernels.execute_wide
        self._fixed = [
            address(operations),
            len(operations),
            *(address(table) for table in tables),
            address(strides),
            self._size,
            scratch,
        ]
        self._arenas: list[tuple[Tensor, int]] = []
        self._work = _work(operations, tables[2])
        self._plans: dict[int, _Plan] = {}

    def __call__(self, *inputs: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch ..."]]:
        """Run on a batch.

        Args:
            inputs: float32 tensors in the CPU's memory, of the shapes that the builder was told.

        Returns:
            One tensor per output.
        """
        samples = inputs[0].shape[0]
        plan = self._plans.get(samples)
        if plan is None:
            plan = self._plans[samples] = self._plan(samples, len(inputs))
        inputs = tuple([x.contiguous() for x in inputs])
        outputs = [inputs[0].new_empty(shape) for shape in plan.shapes]
        try:
            arena = self._arenas.pop()
        except IndexError:
            # Zeros once: no operation ever writes into a halo.
            memory = inputs[0].new_zeros(self._threads * self._size)
            arena = (memory, memory.data_ptr())
        words = plan.words.copy()
        words[kernels.ARENA] = arena[1]
        words[plan.ports] = [x.data_ptr() for x in inputs] + [y.data_ptr() for y in outputs]
        run(self._job, words, plan.threads, plan.threads)
        self._arenas.append(arena)
        return outputs

    def __reduce__(self) -> tuple[type[Program], tuple[Any, ...]]:
        return Program, self._built  # a copy has its own addresses and arenas

    def _plan(self, samples: int, inputs: int) -> _Plan:
        items, count = -(-samples // self._lanes), len(self._built[0])
        shared = 1 < self._threads > items and items * self._work > GANG_WORK
        threads = self._threads if shared or items >= self._threads else 1
        ports = inputs + len(self._shapes)
        counters = kernels.PORTS + 1 + ports
        size = counters + (items * count * (1 + kernels.SHARES * threads) if shared else 0)
        words = np.zeros(size, np.int64)
        words[: kernels.ARENA] = self._fixed
        words[kernels.ITEMS], words[kernels.SAMPLES] = items, samples
        words[kernels.SHARED], words[kernels.COUNTERS] = shared, counters
        shapes = [(samples, *shape) for shape in self._shapes]
        return _Plan(words, slice(kernels.PORTS + 1, counters), shapes, threads)


@dataclass(frozen=True)
class _Plan:
    """The state that calls with the same number of samples share."""

    words: NDArray[np.int64]
    ports: slice
    shapes: list[tuple[int, ...]]
    threads: int


def _work(operations: np.ndarray, starts: NDArray[np.generic]) -> int:
    total = 0
    for operation in operations[operations["kind"] == kernels.SPARSE]:
        first = int(operation["starts"])
        last = first + int(operation["blocks"] * operation["planes"])
        rows = operation["rows"] if operation["tall"] else 1
        total += int(starts[last] - starts[first]) * int(operation["vectors"] * rows)
    return total
