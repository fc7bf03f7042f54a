"""Writing sparse programs: layers become rows of one table over planes in one arena.

`Builder` lays out every intermediate value in one block of memory, the *arena*, and writes down
what to do, one row per operation; `finish` hands the table to a `Program`.

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
from jaxtyping import Float
from numpy.typing import NDArray

from rectified.errors import UserError
from rectified.inference.sparse import kernels
from rectified.inference.sparse.layout import CONFLICT, Value, Window
from rectified.inference.sparse.program import Program

NEAR = 1 << 13  # floats of input in a level-1 cache that leave room for weights: 32 KiB
FAR = 1 << 16  # the same in a level-2 cache: 256 KiB
RARELY = 6  # nonzeros that read a channel: fewer are not worth a copy without cache conflicts
PASS = (10, 45)  # nonzeros in a row that are worth a pass of their own: a + b / vectors of a tile
NO_FLOOR = -math.inf

Row = dict[str, int | float]  # an operation by the fields of `kernels.OPERATION`


class Builder:
    """Writes a program, one operation at a time.

    Args:
        halo: zeros between the rows of every image, the largest `Window.halo` of its convolutions.
        lanes: how many samples one item of the batch holds, side by side; 1 for images.
    """

    def __init__(self, halo: int = 0, lanes: int = 1) -> None:
        self.halo, self.lanes = halo, lanes
        self._operations: list[Row] = []
        self._values: list[NDArray[np.float32]] = []
        self._offsets: list[NDArray[np.int64]] = []
        self._starts: list[NDArray[np.int64]] = []
        self._bases: list[int] = []
        self._biases: list[NDArray[np.float32]] = []
        self._masks: list[NDArray[np.uint8]] = []
        self._size = 0
        self._scratch = 0
        self._free: dict[tuple[int, ...], list[int]] = {}
        self._pinned: set[int] = set()
        self._copies: dict[int, Value] = {}
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
        # Images are copied by the first who needs a border around them.
        return outside if len(shape) == 3 else self._copied(outside, 0)

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
        elif self._wrote_last(value):
            outside = replace(value, halo=0, start=0, port=port)
            self._operations[-1].update(
                target_port=port,
                target=0,
                target_plane=outside.plane,
                target_row=outside.pitch,
            )
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
        height, width = _output(window, value)
        nonzeros = int(np.count_nonzero(weight))
        outputs = weight.shape[0]
        if weight.shape[1] * groups != value.channels:
            raise UserError(
                f"a layer of {weight.shape[1] * groups} inputs cannot read {value.channels}"
            )
        if initial is not None:
            _check_same((outputs, height, width), initial.shape)
        taps = self._taps(value, window, nonzeros)
        added = -1 if initial is None else self._inside(initial).origin
        target = self._allocate(outputs, height, width, self._halo_of(value))
        vectors, tall = _tiling(target)
        floats = _footprint(taps, vectors, tall)
        size = max(tall, 1) * min(vectors, kernels.VECTORS)
        block = _channels_at_once(
            value.channels, floats, nonzeros / (outputs * value.channels), size
        )
        self._operations.append(
            {
                "kind": kernels.SPARSE,
                "source_port": taps.value.port,
                "source": taps.source,
                "source_plane": taps.value.plane,
                "gathers": value.channels if taps.gathered else 0,
                "target": target.origin,
                "initial": added,
                "planes": outputs,
                "target_plane": target.plane,
                "blocks": -(-value.channels // block),
                "vectors": vectors,
                "tall": tall,
                "rows": height,
                "source_row": taps.value.pitch,
                "target_row": target.pitch,
                "floor": floor,
                **self._tables(weight, bias, groups, taps, block, value.channels),
                "mask": self._mask(target, vectors, tall),
            }
        )
        return target

    def pool(self, value: Value, window: Window, *, mean: bool) -> Value:
        """The maximum or the mean of every window, without padding or dilation."""
        height, width = _output(window, value)
        target = self._allocate(value.channels, height, width, self._halo_of(value))
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
        if second is not None:
            _check_same(first.shape, second.shape)
        initial = -1 if second is None else self._inside(second).origin
        target = self._allocate(*first.shape, self._halo_of(first))
        changes = {"initial": initial, "floor": floor}
        self._operations.append(_between(first, target) | changes)
        return target

    def flatten(self, value: Value) -> Value:
        """One vector of all channels, rows and columns."""
        places = value.height * value.width
        vector = Value(value.channels * places, 1, 1, 0, value.start)
        if value.plane == places and value.port == 0:
            return self.pin(vector)
        vector = self._reserve(vector.channels, 1, 1, 0)
        shape = {"target_plane": places, "rows": value.height, "columns": value.width}
        self._operations.append(_between(value, vector) | shape | {"target_row": value.width})
        return vector

    def subsample(self, value: Value, rows: range, columns: range) -> Value:
        """The given rows and columns of every channel, as `x[:, :, ::2, ::2]` takes them."""
        target = self._allocate(value.channels, len(rows), len(columns), self._halo_of(value))
        corner = value.origin + rows.start * value.pitch + columns.start
        steps = {"source_row": rows.step * value.pitch, "source_column": columns.step}
        self._operations.append(_between(value, target) | {"source": corner} | steps)
        return target

    def concatenate(self, values: Sequence[Value], before: int = 0, after: int = 0) -> Value:
        """The channels of all values, between `before` and `after` channels of zeros."""
        channels = before + sum(value.channels for value in values) + after
        first = values[0]
        for value in values:
            _check_same(first.shape[1:], value.shape[1:])
        fresh = self._reserve(channels, first.height, first.width, self._halo_of(first))
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
            operations,
            tables,
            np.array(strides),
            self._size,
            self._scratch,
            self._shapes,
            self.lanes,
            threads,
        )

    def _halo_of(self, value: Value) -> int:
        return self.halo if value.port else value.halo

    def _inside(self, value: Value) -> Value:
        """An input in the arena, copied there once."""
        if value.port == 0:
            return value
        if value.port not in self._copies:
            self._copies[value.port] = self.pin(self._copied(value, self.halo))
        return self._copies[value.port]

    def _taps(self, value: Value, window: Window, nonzeros: int) -> _Taps:
        """The inputs of a convolution's taps, in a form where all are plain distances."""
        if not window.keeps_size:
            phases = self._phases(value, window)
            return _Taps(phases, phases.start, window)
        if window == Window() and value.port and _tiling(value)[1]:
            return self._pointwise(value, window, nonzeros)
        value = self._surrounded(value, nonzeros)
        shift = window.padding[0] * value.pitch + window.padding[1]
        return _Taps(value, value.origin - shift, window)

    def _pointwise(self, value: Value, window: Window, nonzeros: int) -> _Taps:
        """The taps of a 1x1 convolution of an input in whole tiles, which needs no border."""
        # Planes a power of two apart share cache lines; a tile that is read often is worth
        # bringing together.
        if value.plane % CONFLICT or nonzeros <= RARELY * value.channels:
            return _Taps(value, value.origin, window)
        vectors, tall = _tiling(value)
        floats = tall * vectors * kernels.LANES
        self._scratch = max(self._scratch, value.channels * floats)
        return _Taps(value, value.origin, window, floats)

    def _surrounded(self, value: Value, nonzeros: int) -> Value:
        """An input that a convolution can read beyond its planes."""
        # Tiles that end with the plane need no border. Planes a power of two apart share cache
        # lines, and copying them elsewhere costs as much as some passes over them.
        aligned = self.halo == 0 and value.height * value.width % kernels.LANES == 0
        rarely = nonzeros <= RARELY * value.channels
        return value if aligned and rarely else self._inside(value)

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
            and value.start not in self._pinned
            and last.get("target_port", 0) == 0
            and last.get("target") == value.origin
            and last.get("initial", -1) < 0
            and last.get("planes") == value.channels
            and (value.halo == 0 or last["kind"] != kernels.SPARSE or last["tall"] > 0)
        )

    def _copied(self, value: Value, halo: int, port: int = 0) -> Value:
        if port:
            target = replace(value, halo=0, start=0, port=port)
        else:
            target = self._allocate(*value.shape, halo)
        self._operations.append(_between(value, target))
        return target

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

    def _phases(self, value: Value, window: Window) -> Value:
        """Take an image apart by remainder modulo the stride, with its zero padding around it."""
        height, width = window.output(value.height, value.width)
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
    ) -> Row:
        """Append the nonzeros, ordered by block of input channels, then by output."""
        outputs = weight.shape[0]
        row, inner, y, x = np.nonzero(weight)
        channel = inner + row // (outputs // groups) * weight.shape[1]
        group = channel // block
        order = np.argsort(group * outputs + row, kind="stable")
        counts = np.bincount(group * outputs + row, minlength=-(-channels // block) * outputs)
        places: Row = {
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

    def _mask(self, target: Value, vectors: int, tall: int) -> int:
        """Append one bit a position of a tile's row, set where it is a pixel, and say where."""
        position = np.arange(vectors * kernels.LANES)
        pixel = (position % target.pitch < target.width) & (
            position // target.pitch < target.height
        )
        bits = np.packbits(pixel.reshape(vectors, kernels.LANES), axis=1, bitorder="little")
        place = sum(map(len, self._masks))
        self._masks.append(bits.reshape(-1))
        return place


class _Taps:
    """Distances from an output position to what its taps read.

    Args:
        value: what is read.
        source: position that the first tap of the first output reads.
        window: geometry of the taps.
        gathered: distance between channels if each tile's are brought together, else 0.
    """

    def __init__(self, value: Value, source: int, window: Window, gathered: int = 0) -> None:
        self.value, self.source, self.window, self.gathered = value, source, window, gathered
        self._rows = _remainders(window, 0)
        self._columns = _remainders(window, 1)
        self.channel_stride = gathered or len(self._rows) * len(self._columns) * value.plane

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
    """The range in which a strided walk that begins at `first` meets the indices 0 to size - 1."""

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


def _tiling(target: Value) -> tuple[int, int]:
    """Vectors of a row and rows of a tile, or vectors of the plane and 0 if rows have parts."""
    whole, rest = divmod(target.width, kernels.LANES)
    if rest or whole > kernels.VECTORS or target.height == 1:
        positions = (target.height - 1) * target.pitch + target.width
        return -(-positions // kernels.LANES), 0
    return whole, 1 << (kernels.VECTORS // whole).bit_length() - 1


def _footprint(taps: _Taps, vectors: int, tall: int) -> int:
    """Floats of a channel that a tile reads."""
    rows, columns = taps.window.reach
    reach = rows * taps.value.pitch + columns
    if tall:
        return min(tall * taps.value.pitch + reach, taps.channel_stride)
    return min(min(vectors, kernels.VECTORS) * kernels.LANES + reach, taps.channel_stride)


def _channels_at_once(channels: int, floats: int, nonzeros: float, vectors: int) -> int:
    """The input channels that one pass reads, if each has so many floats and nonzeros in a row."""
    # A pass over a row costs as much as some nonzeros, so it should have more than those.
    wanted = PASS[0] + PASS[1] / vectors
    worthwhile = max(NEAR // floats, round(wanted / max(nonzeros, 1e-3)))
    passes = -(-channels // max(1, min(worthwhile, FAR // floats)))
    return -(-channels // passes)


def _output(window: Window, value: Value) -> tuple[int, int]:
    height, width = window.output(value.height, value.width)
    if min(height, width) < 1:
        raise UserError(
            f"a window of {window.kernel} does not fit an image of {value.height} x {value.width}"
        )
    return height, width


def _check_same(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    if first != second:
        raise UserError(
            f"sizes that were equal on the example must be equal, got {first} and {second}"
        )


def _between(source: Value, target: Value) -> Row:
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
