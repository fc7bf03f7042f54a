"""Sparse programs: a chain of layers as one table of operations over planes in one arena.

A call of a PyTorch layer costs 5 to 20 microseconds beside its arithmetic, and a convolution of a
small network at 95 % sparsity has less than that to compute. So a network is not run layer by
layer: `Builder` lays out every intermediate value in one block of memory, the *arena*, and writes
down what to do as rows of a table, and `Program` hands that table to one compiled interpreter
(`sparse_kernels.execute`). Bias, residual sum and ReLU are part of the convolution that comes
before them.

Layout: a value is `channels` planes of `height` rows of `pitch = width + halo` floats. The `halo`
zeros at a row's end are also the left border of the next row, and those above a plane are also the
lower border of the plane before, so a zero-padded convolution of stride 1 is a plain sum of
shifted planes:

    position(c, y, x) = start + (c * (height + halo) + y + halo) * pitch + halo + x.

A strided convolution first takes its input apart into one plane for each remainder of row and
column modulo the stride, and is then of stride 1. A linear layer is a 1x1 convolution on an image
of 1 pixel, or, for a batch, of as many pixels as there are samples ("lanes"): there activations
stay feature-major from layer to layer and only the first and the last transpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from rectified.pruning import sparse_kernels as kernels
from rectified.pruning.gang import together

CACHED = 1 << 16  # floats of input that a tile may touch: 256 KiB, well inside a level-2 cache
NO_FLOOR = -math.inf


@dataclass(frozen=True)
class Value:
    """Where an image of `channels` x `height` x `width` lies.

    Args:
        channels: number of planes.
        height: rows of a plane.
        width: columns that hold data.
        halo: zeros between rows, and rows of zeros between planes.
        start: position of the first float in the arena, or in the tensor at `port`.
        port: 0 for the arena, else the number of an input or output.
    """

    channels: int
    height: int
    width: int
    halo: int = 0
    start: int = 0
    port: int = 0

    @property
    def pitch(self) -> int:
        """Floats from one row to the next."""
        return self.width + self.halo

    @property
    def plane(self) -> int:
        """Floats from one channel to the next."""
        return (self.height + self.halo) * self.pitch

    @property
    def origin(self) -> int:
        """Position of the first pixel of the first channel."""
        return self.start + self.halo * (self.pitch + 1)

    @property
    def size(self) -> int:
        """Floats in all, with the border below the last plane."""
        return self.channels * self.plane + self.halo * (self.pitch + 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or a pool, (rows, columns) each.

    Args:
        kernel: size.
        stride: step between outputs.
        padding: zeros before the first row and column, and after the last.
        dilation: step between taps.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def reach(self) -> tuple[int, int]:
        """Distance from the first tap to the last."""
        rows, columns = (
            (k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)
        )
        return rows, columns

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Size of the output for an input of this size.

        Example:
            >>> Window((3, 3), (2, 2), (1, 1)).output(32, 32)
            (16, 16)
        """
        rows, columns = (
            (size + 2 * pad - reach - 1) // step + 1
            for size, pad, reach, step in zip(
                (height, width), self.padding, self.reach, self.stride, strict=True
            )
        )
        return rows, columns

    @property
    def keeps_size(self) -> bool:
        """Whether the output is as large as the input, pixel above pixel."""
        same = all(2 * pad == reach for pad, reach in zip(self.padding, self.reach, strict=True))
        return same and self.stride == (1, 1)

    @property
    def halo(self) -> int:
        """Zeros that this convolution wants between the rows of what it reads."""
        if self.keeps_size:
            return max(self.padding)
        return max(reach // step for reach, step in zip(self.reach, self.stride, strict=True))


class Builder:
    """Writes a program, one operation at a time.

    Args:
        halo: zeros between the rows of every image, the largest `Window.halo` of its convolutions.
        lanes: how many samples one item of the batch holds, side by side; 1 for images.
    """

    def __init__(self, halo: int = 0, lanes: int = 1) -> None:
        self.halo, self.lanes = halo, lanes
        self._operations: list[dict[str, float]] = []
        self._values: list[NDArray[np.float32]] = []
        self._offsets: list[NDArray[np.int64]] = []
        self._starts: list[NDArray[np.int64]] = []
        self._bases: list[int] = []
        self._biases: list[NDArray[np.float32]] = []
        self._masks: list[NDArray[np.uint8]] = []
        self._size = 0
        self._free: dict[tuple[int, ...], list[int]] = {}
        self._pinned: set[int] = set()
        self._strides: list[int] = [0]
        self._shapes: list[tuple[int, ...]] = []

    def input(self, shape: tuple[int, ...]) -> Value:
        """Declare the next input, of this shape without the batch.

        Args:
            shape: (channels, height, width) or (features,).

        Returns:
            The value to compute with.
        """
        port = len(self._strides)
        self._strides.append(math.prod(shape) * self.lanes)
        if self.lanes > 1:
            return self._take_in(port, shape[0])
        channels, height, width = shape if len(shape) == 3 else (shape[0], 1, 1)
        outside = Value(channels, height, width, port=port)
        # A tile that ends with its plane never reads past the caller's tensor.
        readable = len(shape) == 3 and height * width % kernels.LANES == 0 and self.halo == 0
        return outside if readable else self._copied(outside, self.halo if len(shape) == 3 else 0)

    def output(self, value: Value, flat: bool) -> None:
        """Declare the next output.

        Args:
            value: what to return.
            flat: whether its shape is (features,) rather than (channels, height, width).
        """
        port = len(self._strides) - 1 + len(self._shapes) + 1
        self._shapes.append((value.channels,) if flat else value.shape)
        if self.lanes > 1:
            self._hand_out(port, value)
        elif value.halo == 0 and self._wrote_last(value):
            self._operations[-1].update(target_port=port, target=0)
        else:
            self._copied(value, 0, port)

    def release(self, value: Value) -> None:
        """Let a later value of the same layout take this one's place."""
        if value.port == 0 and value.start not in self._pinned:
            self._free.setdefault((*value.shape, value.halo), []).append(value.start)

    def pin(self, value: Value) -> Value:
        """Keep a value's place for good, because another name for it will be in use."""
        self._pinned.add(value.start)
        return value

    def convolution(
        self,
        value: Value,
        weight: Float[np.ndarray, "outputs inputs rows columns"],
        bias: Float[np.ndarray, " outputs"],
        window: Window,
        *,
        groups: int = 1,
        initial: Value | None = None,
        floor: float = NO_FLOOR,
    ) -> Value:
        """max(floor, convolution + bias + initial), at the cost of the nonzero weights.

        Args:
            value: the input.
            weight: zeros cost nothing.
            bias: added to every pixel of an output channel.
            window: geometry of the taps.
            groups: inputs of output n are those of its group.
            initial: a value of the output's shape to add.
            floor: 0 for a ReLU.

        Returns:
            The output.
        """
        height, width = window.output(value.height, value.width)
        if window.keeps_size:
            taps = _Taps(value, window)
            shift = window.padding[0] * value.pitch + window.padding[1]
            source = value.origin - shift
        else:
            taps = _Taps(self._phases(value, window, height, width), window)
            source = taps.value.start
        outputs = weight.shape[0]
        given = None if initial is None else self._inside(initial)
        target = self._allocate(outputs, height, width, taps.value.halo)
        vectors = -(-((height - 1) * target.pitch + width) // kernels.LANES)
        block = _channels_at_once(vectors)
        self._operations.append(
            {
                "kind": kernels.SPARSE,
                "source_port": taps.value.port,
                "source": source,
                "target": target.origin,
                "initial": -1 if given is None else given.origin,
                "planes": outputs,
                "target_plane": target.plane,
                "blocks": -(-value.channels // block),
                "vectors": vectors,
                "floor": floor,
                **self._tables(weight, bias, groups, taps, block, value.channels),
                "mask": self._mask(target, vectors),
            }
        )
        return target

    def pool(self, value: Value, window: Window, *, mean: bool) -> Value:
        """The maximum or the mean of every window, without padding or dilation."""
        height, width = window.output(value.height, value.width)
        target = self._allocate(value.channels, height, width, value.halo)
        self._operations.append(
            _between(value, target)
            | {
                "kind": kernels.MEAN if mean else kernels.MAXIMUM,
                "source_row": window.stride[0] * value.pitch,
                "source_column": window.stride[1],
                "window_rows": window.kernel[0],
                "window_columns": window.kernel[1],
                "window_pitch": value.pitch,
            }
        )
        return target

    def add(self, first: Value, second: Value | None = None, *, floor: float = NO_FLOOR) -> Value:
        """max(floor, first + second), pixel by pixel."""
        initial = -1 if second is None else self._inside(second).origin
        target = self._allocate(*first.shape, first.halo)
        changes = {"initial": initial, "floor": floor}
        self._operations.append(_between(first, target) | changes)
        return target

    def flatten(self, value: Value) -> Value:
        """One vector of all channels, rows and columns."""
        whole = self.pin(self._copied(value, 0) if value.halo or value.port else value)
        return Value(whole.channels * whole.height * whole.width, 1, 1, 0, whole.start)

    def subsample(self, value: Value, rows: range, columns: range) -> Value:
        """The given rows and columns of every channel, as `x[:, :, ::2, ::2]` takes them."""
        target = self._allocate(value.channels, len(rows), len(columns), value.halo)
        corner = value.origin + rows.start * value.pitch + columns.start
        steps = {"source_row": rows.step * value.pitch, "source_column": columns.step}
        self._operations.append(_between(value, target) | {"source": corner} | steps)
        return target

    def concatenate(self, values: Sequence[Value], before: int = 0, after: int = 0) -> Value:
        """The channels of all values, between `before` and `after` channels of zeros."""
        channels = before + sum(value.channels for value in values) + after
        first = values[0]
        fresh = self._reserve(channels, first.height, first.width, first.halo)
        position = fresh.origin + before * fresh.plane
        for value in values:
            self._operations.append(_between(value, fresh) | {"target": position})
            position += value.channels * fresh.plane
        return self.pin(fresh)

    def finish(self, threads: int) -> Program:
        """Return what was built as something to call.

        Args:
            threads: how many threads a call may use, at least 1.
        """
        operations = np.zeros(len(self._operations), kernels.OPERATION)
        for row, operation in zip(operations, self._operations, strict=True):
            for name, number in ({"initial": -1, "floor": NO_FLOOR} | operation).items():
                row[name] = number
        offsets = _joined(self._offsets, np.int64)
        narrow = offsets.size == 0 or offsets.max() < 1 << 16
        tables = (
            _joined(self._values, np.float32),
            offsets.astype(np.uint16 if narrow else np.uint32),
            _joined(self._starts, np.int64),
            np.array(self._bases, np.int64),
            _joined(self._biases, np.float32),
            _joined(self._masks, np.uint8),
        )
        strides = self._strides + [math.prod(shape) * self.lanes for shape in self._shapes]
        return Program(
            operations, tables, np.array(strides), self._size, self._shapes, self.lanes, threads
        )

    def _reserve(self, channels: int, height: int, width: int, halo: int) -> Value:
        value = Value(channels, height, width, halo, start=self._size)
        self._size += -(-value.size // 16) * 16  # values begin on cache lines
        return value

    def _allocate(self, channels: int, height: int, width: int, halo: int) -> Value:
        waiting = self._free.get((channels, height, width, halo))
        if waiting:
            return Value(channels, height, width, halo, waiting.pop())
        return self._reserve(channels, height, width, halo)

    def _wrote_last(self, value: Value) -> bool:
        last = self._operations[-1] if self._operations else {}
        return (
            value.port == 0
            and last.get("target_port", 0) == 0
            and last.get("target") == value.origin
            and last.get("initial", -1) < 0
            and last.get("planes") == value.channels
        )

    def _copied(self, value: Value, halo: int, port: int = 0) -> Value:
        if port:
            target = replace(value, halo=0, start=0, port=port)
        else:
            target = self._allocate(*value.shape, halo)
        self._operations.append(_between(value, target))
        return target

    def _inside(self, value: Value) -> Value:
        return self._copied(value, value.halo) if value.port else value

    def _take_in(self, port: int, features: int) -> Value:
        target = self._reserve(features, 1, self.lanes, 0)
        self._operations.append(
            {
                "kind": kernels.TRANSPOSE,
                "source_port": port,
                "target": target.start,
                "rows": self.lanes,
                "columns": features,
                "source_row": features,
                "target_row": self.lanes,
            }
        )
        return target

    def _hand_out(self, port: int, value: Value) -> None:
        self._operations.append(
            {
                "kind": kernels.TRANSPOSE,
                "target_port": port,
                "source": value.start,
                "rows": value.channels,
                "columns": self.lanes,
                "source_row": self.lanes,
                "target_row": value.channels,
            }
        )

    def _phases(self, value: Value, window: Window, height: int, width: int) -> Value:
        """Take an image apart by remainder modulo the stride, with its zero padding around it."""
        tall = height + window.reach[0] // window.stride[0]
        wide = width + window.reach[1] // window.stride[1]
        rows, columns = _remainders(window, 0), _remainders(window, 1)
        count = len(rows) * len(columns)
        # Planes as wide as the output's, so that one walk serves both; the halo holds the rest.
        target = self._reserve(value.channels * count, tall, width, self.halo)
        position = target.start
        for row in rows:
            for column in columns:
                up = _inside_range(row - window.padding[0], window.stride[0], value.height, tall)
                along = _inside_range(
                    column - window.padding[1], window.stride[1], value.width, wide
                )
                self._operations.append(
                    _between(value, target)
                    | {
                        "source": value.origin + up.source * value.pitch + along.source,
                        "target": position + up.target * target.pitch + along.target,
                        "target_plane": count * target.plane,
                        "rows": up.count,
                        "columns": along.count,
                        "source_row": window.stride[0] * value.pitch,
                        "source_column": window.stride[1],
                    }
                )
                position += target.plane
        return target

    def _tables(
        self,
        weight: Float[np.ndarray, "outputs inputs rows columns"],
        bias: Float[np.ndarray, " outputs"],
        groups: int,
        taps: _Taps,
        block: int,
        channels: int,
    ) -> dict[str, float]:
        """Append the nonzeros, ordered by block of input channels, then by output."""
        outputs = weight.shape[0]
        row, inner, y, x = np.nonzero(weight)
        channel = inner + row // (outputs // groups) * weight.shape[1]
        group = channel // block
        order = np.argsort(group * outputs + row, kind="stable")
        counts = np.bincount(group * outputs + row, minlength=-(-channels // block) * outputs)
        places = {
            "starts": sum(map(len, self._starts)),
            "bases": len(self._bases),
            "biases": sum(map(len, self._biases)),
        }
        before = sum(map(len, self._values))
        self._starts.append(before + np.concatenate([[0], np.cumsum(counts)]))
        self._values.append(weight[row, inner, y, x][order])
        self._offsets.append(taps.offset(channel % block, y, x)[order])
        self._biases.append(bias)
        step = block * taps.channel_stride
        self._bases += [number * step for number in range(-(-channels // block))]
        return places

    def _mask(self, target: Value, vectors: int) -> int:
        """Append one bit a position, set where the position is a pixel, and say where."""
        position = np.arange(vectors * kernels.LANES)
        pixel = (position % target.pitch < target.width) & (
            position // target.pitch < target.height
        )
        bits = np.packbits(pixel.reshape(vectors, kernels.LANES), axis=1, bitorder="little")
        place = sum(map(len, self._masks))
        self._masks.append(bits.reshape(-1))
        return place


class _Taps:
    """Distances from an output position to what its taps read."""

    def __init__(self, value: Value, window: Window) -> None:
        self.value, self.window = value, window
        self._rows = _remainders(window, 0)
        self._columns = _remainders(window, 1)
        self.channel_stride = len(self._rows) * len(self._columns) * value.plane

    def offset(
        self, channel: NDArray[np.int64], y: NDArray[np.int64], x: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        down, row = np.divmod(y * self.window.dilation[0], self.window.stride[0])
        right, column = np.divmod(x * self.window.dilation[1], self.window.stride[1])
        phase = np.searchsorted(self._rows, row) * len(self._columns)
        phase += np.searchsorted(self._columns, column)
        plane = phase * self.value.plane + channel * self.channel_stride
        return plane + down * self.value.pitch + right


@dataclass(frozen=True)
class _Overlap:
    """Where a strided walk that begins at `first` meets the indices 0 to size - 1."""

    source: int
    target: int
    count: int


def _inside_range(first: int, step: int, size: int, limit: int) -> _Overlap:
    target = max(0, -(first // step))
    source = first + target * step
    return _Overlap(source, target, max(0, min(limit - target, -((source - size) // step))))


def _remainders(window: Window, axis: int) -> list[int]:
    stride, dilation = window.stride[axis], window.dilation[axis]
    return sorted({tap * dilation % stride for tap in range(window.kernel[axis])})


def _channels_at_once(vectors: int) -> int:
    return max(1, CACHED // (min(vectors, kernels.VECTORS) * kernels.LANES))


def _between(source: Value, target: Value) -> dict[str, float]:
    """An operation that copies all pixels."""
    return {
        "kind": kernels.COPY,
        "source_port": source.port,
        "target_port": target.port,
        "source": source.origin,
        "target": target.origin,
        "planes": source.channels,
        "source_plane": source.plane,
        "target_plane": target.plane,
        "rows": target.height,
        "columns": target.width,
        "source_row": source.pitch,
        "target_row": target.pitch,
        "source_column": 1,
    }


def _joined(parts: Sequence[NDArray[np.generic]], dtype: type) -> NDArray[np.generic]:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)


GANG_WORK = 250_000  # vector operations, about 100 microseconds: less is not worth a hand-over


class Program:
    """A built program; call it with one tensor an input.

    It may be called from several threads at once: each call takes an arena of its own.
    """

    def __init__(
        self,
        operations: NDArray[np.void],
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
        """Run this thread's share of the items."""
        mine = (items * rank // ranks, items * (rank + 1) // ranks)
        arena = self._borrow()
        self._execute(arena, ports, mine, samples, 0, 1, np.zeros(1, np.int64))
        self._arenas.append(arena)

    def _side_by_side(self, ports: list[int], items: int, samples: int) -> bool:
        """Let all threads share every operation."""
        arena, counter, ranks = self._borrow(), np.zeros(1, np.int64), self._threads
        done = together(
            lambda rank: self._execute(
                arena, ports, (0, items), samples, rank, ranks, counter
            ),
            ranks,
        )
        self._arenas.append(arena)
        return done

    def _execute(
        self,
        arena: Tensor,
        ports: list[int],
        items: tuple[int, int],
        samples: int,
        rank: int,
        ranks: int,
        counter: NDArray[np.int64],
    ) -> None:
        places = np.array([arena.data_ptr(), *ports[1:]], np.int64)
        kernels.execute(
            self._operations,
            self._tables,
            places,
            self._strides,
            items,
            samples,
            rank,
            ranks,
            counter,
        )

    def _borrow(self) -> Tensor:
        try:
            return self._arenas.pop()
        except IndexError:
            # Zeros once: no operation ever writes into a halo.
            return torch.zeros(self._size + kernels.SLACK)


def _work(operations: NDArray[np.void], starts: NDArray[np.generic]) -> int:
    total = 0
    for operation in operations[operations["kind"] == kernels.SPARSE]:
        first = int(operation["starts"])
        last = first + int(operation["blocks"] * operation["planes"])
        total += int(starts[last] - starts[first]) * int(operation["vectors"])
    return total
