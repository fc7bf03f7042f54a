"""The machine code of the sparse engine: an interpreter of a handful of operations on planes.

A *plane* is a run of consecutive floats: one channel of an image, its rows separated by zeros, or
one feature of a batch. On planes a sparse convolution and a sparse matrix product are the same sum,

    target[n, p] = max(floor, bias[n] + initial[n, p] + sum_j values[j] * source[offsets[j] + p]),

where j runs over the nonzeros of row n and `offsets` holds, for each, the distance from the output
position p to the input position that it multiplies: `channel * plane + dy * pitch + dx`. A row's
positions are computed `LANES` at a time, up to eight vectors together, so that each nonzero costs
one broadcast and one fused multiply-add a vector, and nothing is ever gathered. LLVM does not find
that form by itself (it vectorises over j, with gathers), so `accumulate` writes the vector
instructions out: 16 lanes where the CPU has AVX-512, 8 with AVX2, 4 elsewhere.

Conventions: every position counts floats; addresses count bytes; a negative `initial` means none.
Everything here is `nogil` and serial; threads share it as a job (see `rectified.gang`).

The functions that numba compiles carry no annotations and `no_type_check`: it reads their bytecode.
Compiling takes a few seconds once a machine; numba keeps the result in its cache folder.
"""

from typing import no_type_check

import numpy as np
from llvmlite import binding, ir
from numba import carray, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from rectified.gang import count_up, job, pointer, wait


def lanes(features: str) -> int:
    """Return how many float32 one vector holds on a CPU with these LLVM features.

    Example:
        >>> lanes("+avx2,+fma"), lanes("+avx2,+avx512f"), lanes("+neon")
        (8, 16, 4)
    """
    names = features.split(",")
    return 16 if "+avx512f" in names else 8 if "+avx2" in names else 4


LANES = lanes(getattr(config, "CPU_FEATURES", None) or binding.get_host_cpu_features().flatten())
VECTORS = 8  # vectors of one tile: 8 accumulators hide the latency of a fused multiply-add
SLACK = 2 * VECTORS * 16  # floats that a tile may read beyond the last plane, at any lane count

SHARES = 2  # parts of an operation for each thread, so that a late one delays little

SPARSE, COPY, MAXIMUM, MEAN, TRANSPOSE = range(5)

OPERATION = np.dtype(
    [
        ("kind", np.int64),
        ("source_port", np.int64),  # 0 is the arena, then the inputs, then the outputs
        ("target_port", np.int64),
        ("source", np.int64),  # positions of the first element
        ("target", np.int64),
        ("initial", np.int64),
        ("planes", np.int64),
        ("source_plane", np.int64),  # distances between planes, rows and columns
        ("target_plane", np.int64),
        ("rows", np.int64),
        ("columns", np.int64),
        ("source_row", np.int64),
        ("target_row", np.int64),
        ("source_column", np.int64),
        ("window_rows", np.int64),
        ("window_columns", np.int64),
        ("window_pitch", np.int64),
        ("blocks", np.int64),  # groups of input planes that the cache holds together
        ("bases", np.int64),  # where this operation's entries begin in the shared tables
        ("starts", np.int64),
        ("biases", np.int64),
        ("mask", np.int64),
        ("vectors", np.int64),
        ("floor", np.float32),
    ]
)

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)
# LANES bits are read at once, and a byte is the least that can be addressed.
_MASK = ir.IntType(max(LANES, 8))


def _splat(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(single, undefined, zeros)


def _at(builder: ir.IRBuilder, pointer: ir.Value, index: int) -> ir.Value:
    """The address of vector `index` behind a pointer to floats."""
    place = builder.gep(pointer, [ir.Constant(_INT, index * LANES)])
    return builder.bitcast(place, _VECTOR.as_pointer())


def _load(builder: ir.IRBuilder, pointer: ir.Value, index: int) -> ir.Value:
    return builder.load(_at(builder, pointer, index), align=4)


def _multiply_add(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    name = f"llvm.fma.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x, y, z])


def _store_where(builder: ir.IRBuilder, value: ir.Value, place: ir.Value, mask: ir.Value) -> None:
    alignment = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [_VECTOR, place.type, alignment, _BITS])
    name = f"llvm.masked.store.v{LANES}f32.p0"
    store = cgutils.get_or_insert_function(builder.module, kind, name)
    builder.call(store, [value, place, ir.Constant(alignment, 4), mask])


def _at_least(builder: ir.IRBuilder, value: ir.Value, least: ir.Value) -> ir.Value:
    # Ordered, so that a NaN is kept, as torch's ReLU keeps it.
    return builder.select(builder.fcmp_ordered("<", value, least), least, value)


def _mask(builder: ir.IRBuilder, pointer: ir.Value, index: int) -> ir.Value:
    step = ir.Constant(_INT, index * _MASK.width // 8)
    place = builder.bitcast(builder.gep(pointer, [step]), _MASK.as_pointer())
    bits = builder.load(place, align=1)
    return builder.bitcast(builder.trunc(bits, ir.IntType(LANES)) if LANES < 8 else bits, _BITS)


def _sums(
    builder: ir.IRBuilder,
    width: int,
    values: ir.Value,
    offsets: ir.Value,
    begin: ir.Value,
    end: ir.Value,
    source: ir.Value,
) -> list[ir.Value]:
    """`width` vectors of sum_j values[j] * source[offsets[j] + lane], j from begin to end."""
    # Few vectors would wait for their own previous sum: several chains run side by side.
    chains = {1: 4, 2: 4, 3: 2, 4: 2}.get(width, 1)
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(width)] for _ in range(chains)]
    for slot in (slot for chain in sums for slot in chain):
        builder.store(zero, slot)

    def add(j: ir.Value, chain: list[ir.Value]) -> None:
        value = _splat(builder, builder.load(builder.gep(values, [j])))
        offset = builder.zext(builder.load(builder.gep(offsets, [j])), _INT)
        place = builder.gep(source, [offset])
        for index, slot in enumerate(chain):
            product = _multiply_add(
                builder, value, _load(builder, place, index), builder.load(slot)
            )
            builder.store(product, slot)

    step = ir.Constant(_INT, chains)
    whole = builder.sub(end, builder.srem(builder.sub(end, begin), step))
    with cgutils.for_range_slice(builder, begin, whole, step, _INT) as (j, _):
        for number, chain in enumerate(sums):
            add(builder.add(j, ir.Constant(_INT, number)), chain)
    if chains > 1:
        with cgutils.for_range_slice(builder, whole, end, ir.Constant(_INT, 1), _INT) as (j, _):
            add(j, sums[0])
    totals = [builder.load(slot) for slot in sums[0]]
    for chain in sums[1:]:
        totals = [
            builder.fadd(total, builder.load(slot))
            for total, slot in zip(totals, chain, strict=True)
        ]
    return totals


@intrinsic
@no_type_check
def accumulate(
    typing, width, values, offsets, begin, end, source, target, initial, given, bias, floor, mask
):
    """One tile of one row: `width` vectors of the module's formula, stored where `mask` has bits.

    `source`, `target`, `initial` and `mask` are pointers; `given` tells whether to read `initial`.
    """
    signature = types.void(
        width, values, offsets, begin, end, source, target, initial, given, bias, floor, mask
    )

    def generate(context, builder, signature, arguments):
        (width, _, _, begin, end, source, target, initial, given, bias, floor, mask) = arguments
        values, offsets = (
            context.make_array(signature.args[k])(context, builder, arguments[k]).data
            for k in (1, 2)
        )
        done = builder.append_basic_block("accumulated")
        switch = builder.switch(width, done)
        for vectors in range(1, VECTORS + 1):
            block = builder.append_basic_block(f"accumulate{vectors}")
            switch.add_case(ir.Constant(width.type, vectors), block)
            builder.position_at_end(block)
            totals = _sums(builder, vectors, values, offsets, begin, end, source)
            slots = [cgutils.alloca_once(builder, _VECTOR) for _ in totals]
            for total, slot in zip(totals, slots, strict=True):
                builder.store(builder.fadd(total, _splat(builder, bias)), slot)
            with builder.if_then(given):
                for index, slot in enumerate(slots):
                    there = _load(builder, initial, index)
                    builder.store(builder.fadd(builder.load(slot), there), slot)
            least = _splat(builder, floor)
            for index, slot in enumerate(slots):
                total = builder.load(slot)
                total = _at_least(builder, total, least)
                place = _at(builder, target, index)
                _store_where(builder, total, place, _mask(builder, mask, index))
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, generate


def _exchange(
    builder: ir.IRBuilder, low: ir.Value, high: ir.Value, distance: int
) -> tuple[ir.Value, ir.Value]:
    """Swap the off-diagonal blocks of two rows that lie `distance` apart (Eklundh)."""

    def pick(shift: int) -> ir.Constant:
        lane = [
            (column + shift if not column & distance else LANES + column + shift - distance)
            for column in range(LANES)
        ]
        return ir.Constant(ir.VectorType(ir.IntType(32), LANES), lane)

    first = builder.shuffle_vector(low, high, pick(0))
    return first, builder.shuffle_vector(low, high, pick(distance))


@intrinsic
@no_type_check
def transpose_tile(typing, source, source_row, target, target_row):
    """Transpose LANES x LANES floats between two pointers, in registers."""
    signature = types.void(source, source_row, target, target_row)

    def generate(context, builder, signature, arguments):
        source, source_row, target, target_row = arguments

        def row(pointer: ir.Value, pitch: ir.Value, index: int) -> ir.Value:
            return builder.gep(pointer, [builder.mul(pitch, ir.Constant(_INT, index))])

        tile = [_load(builder, row(source, source_row, index), 0) for index in range(LANES)]
        distance = LANES // 2
        while distance:
            for low in (index for index in range(LANES) if not index & distance):
                high = low + distance
                tile[low], tile[high] = _exchange(builder, tile[low], tile[high], distance)
            distance //= 2
        for index, value in enumerate(tile):
            builder.store(value, _at(builder, row(target, target_row, index), 0), align=4)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def floats_at(typing, address):
    """A pointer to the floats at an address in bytes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], _FLOAT.as_pointer())

    return types.CPointer(types.float32)(address), generate


@intrinsic
@no_type_check
def bytes_of(typing, array, index):
    """A pointer to entry `index` of an array of bytes."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(types.uint8)(array, index), generate


@njit(nogil=True, cache=True)
@no_type_check
def _share(count, rank, ranks):
    """The half-open range of `count` things that thread `rank` of `ranks` does."""
    return count * rank // ranks, count * (rank + 1) // ranks


@njit(nogil=True, cache=True)
@no_type_check
def _sparse(operation, source, target, tables, rank, ranks):
    values, offsets, starts, bases, biases, masks = tables
    first, last = _share(operation.planes, rank, ranks)
    tiles = (operation.vectors + VECTORS - 1) // VECTORS
    for block in range(operation.blocks):
        begins = operation.starts + block * operation.planes
        floor = operation.floor if block == operation.blocks - 1 else np.float32(-np.inf)
        initial = operation.initial if block == 0 else operation.target
        origin = source + 4 * bases[operation.bases + block]
        for tile in range(tiles):
            vector = tile * operation.vectors // tiles
            width = (tile + 1) * operation.vectors // tiles - vector
            position = 4 * LANES * vector
            mask = bytes_of(masks, operation.mask + vector * max(LANES // 8, 1))
            for row in range(first, last):
                plane = 4 * row * operation.target_plane + position
                accumulate(
                    width,
                    values,
                    offsets,
                    starts[begins + row],
                    starts[begins + row + 1],
                    floats_at(origin + position),
                    floats_at(target + plane),
                    floats_at(target + plane + 4 * (initial - operation.target)),
                    initial >= 0,
                    biases[operation.biases + row] if block == 0 else np.float32(0),
                    floor,
                    mask,
                )


@intrinsic
@no_type_check
def move(typing, source, more, given, target, floor):
    """One vector of target = max(floor, source + more), or without `more` if it is not `given`."""
    signature = types.void(source, more, given, target, floor)

    def generate(context, builder, signature, arguments):
        source, more, given, target, floor = arguments
        slot = cgutils.alloca_once_value(builder, _load(builder, source, 0))
        with builder.if_then(given):
            builder.store(builder.fadd(builder.load(slot), _load(builder, more, 0)), slot)
        value = _at_least(builder, builder.load(slot), _splat(builder, floor))
        builder.store(value, _at(builder, target, 0), align=4)
        return context.get_dummy_value()

    return signature, generate


@njit(nogil=True, cache=True)
@no_type_check
def _copy(operation, source, target, rank, ranks):
    step, columns, floor = operation.source_column, operation.columns, operation.floor
    given = operation.initial >= 0
    shift = 4 * (operation.initial - operation.target) if given else 0
    whole = columns - columns % LANES if step == 1 else 0
    first, last = _share(operation.planes, rank, ranks)
    for plane in range(first, last):
        for row in range(operation.rows):
            old = source + 4 * (operation.source_plane * plane + operation.source_row * row)
            new = target + 4 * (operation.target_plane * plane + operation.target_row * row)
            for column in range(0, whole, LANES):
                here, there = old + 4 * column, new + 4 * column
                move(floats_at(here), floats_at(there + shift), given, floats_at(there), floor)
            for column in range(whole, columns):
                there = new + 4 * column
                value = floats_at(old + 4 * column * step)[0]
                if given:
                    value += floats_at(there + shift)[0]
                carray(floats_at(there), (1,))[0] = floor if value < floor else value


@njit(nogil=True, cache=True)
@no_type_check
def _maximum(operation, source, target, rank, ranks):
    step = operation.source_column
    first, last = _share(operation.planes, rank, ranks)
    for plane in range(first, last):
        for row in range(operation.rows):
            here = operation.source_plane * plane + operation.source_row * row
            there = operation.target_plane * plane + operation.target_row * row
            new = carray(floats_at(target + 4 * there), (operation.columns,))
            new[:] = -np.inf
            for y in range(operation.window_rows):
                for x in range(operation.window_columns):
                    shift = here + y * operation.window_pitch + x
                    old = carray(floats_at(source + 4 * shift), (operation.columns * step,))
                    if step == 2:  # a constant step is one that LLVM vectorises
                        for column in range(operation.columns):
                            value = old[column * 2]
                            new[column] = new[column] if value <= new[column] else value
                    else:
                        for column in range(operation.columns):
                            value = old[column * step]
                            new[column] = new[column] if value <= new[column] else value


@njit(nogil=True, cache=True, fastmath={"reassoc"})
@no_type_check
def _window_sum(source, rows, columns, pitch):
    total = np.float32(0)
    for y in range(rows):
        line = carray(floats_at(source + 4 * y * pitch), (columns,))
        for column in range(columns):
            total += line[column]
    return total


@njit(nogil=True, cache=True)
@no_type_check
def _mean(operation, source, target, rank, ranks):
    height, width = operation.window_rows, operation.window_columns
    first, last = _share(operation.planes, rank, ranks)
    for plane in range(first, last):
        for row in range(operation.rows):
            there = operation.target_plane * plane + operation.target_row * row
            new = carray(floats_at(target + 4 * there), (operation.columns,))
            for column in range(operation.columns):
                here = operation.source_plane * plane + operation.source_row * row
                corner = source + 4 * (here + operation.source_column * column)
                total = _window_sum(corner, height, width, operation.window_pitch)
                new[column] = total / np.float32(height * width)


@njit(nogil=True, cache=True)
@no_type_check
def _transpose(operation, source, target, rows, columns, rank, ranks):
    """Write source[row, column] to target[column, row]."""
    old_row, new_row = operation.source_row, operation.target_row
    first, last = _share((columns + LANES - 1) // LANES, rank, ranks)
    for column in range(first * LANES, min(last * LANES, columns), LANES):
        for row in range(0, rows, LANES):
            old = source + 4 * (row * old_row + column)
            new = target + 4 * (column * new_row + row)
            if row + LANES <= rows and column + LANES <= columns:
                transpose_tile(floats_at(old), old_row, floats_at(new), new_row)
                continue
            for y in range(min(LANES, rows - row)):
                line = carray(floats_at(old + 4 * y * old_row), (LANES,))
                for x in range(min(LANES, columns - column)):
                    carray(floats_at(new + 4 * (x * new_row + y)), (1,))[0] = line[x]


@njit(nogil=True, cache=True)
@no_type_check
def _perform(operation, tables, arena, ports, strides, item, samples, rank, ranks):
    origin, goal = operation.source_port, operation.target_port
    source = arena if origin == 0 else ports[origin] + 4 * item * strides[origin]
    target = arena if goal == 0 else ports[goal] + 4 * item * strides[goal]
    source += 4 * operation.source
    target += 4 * operation.target
    if operation.kind == SPARSE:
        _sparse(operation, source, target, tables, rank, ranks)
    elif operation.kind == COPY:
        _copy(operation, source, target, rank, ranks)
    elif operation.kind == MAXIMUM:
        _maximum(operation, source, target, rank, ranks)
    elif operation.kind == MEAN:
        _mean(operation, source, target, rank, ranks)
    else:
        rows, columns = operation.rows, operation.columns
        if origin == 0:  # out of the arena: the samples are the columns
            columns = min(columns, samples - item * columns)
        else:
            rows = min(rows, samples - item * rows)
        _transpose(operation, source, target, rows, columns, rank, ranks)


# What a run needs, by its place among the words of the job.
OPERATIONS, COUNT, VALUES, OFFSETS, STARTS, BASES, BIASES, MASKS, PORTS, STRIDES = range(10)
ARENA, ARENA_FLOATS, ITEMS, SAMPLES, COUNTERS, WORDS = range(10, 16)
_MANY = 1 << 40  # entries of a table whose length nobody needs


@njit(nogil=True, cache=True)
@no_type_check
def _execute(words, part, parts, offsets):
    """Run a program on a batch: this part's items, or, with counters, a share of each operation.

    With counters, each part takes the next share of an operation that is left, so nobody waits for
    a part that has not begun; only a share that was begun is waited for.
    """
    operations = carray(pointer(words[OPERATIONS]), (words[COUNT],), dtype=OPERATION)
    tables = (
        carray(pointer(words[VALUES]), (_MANY,), dtype=np.float32),
        offsets,
        carray(pointer(words[STARTS]), (_MANY,), dtype=np.int64),
        carray(pointer(words[BASES]), (_MANY,), dtype=np.int64),
        carray(pointer(words[BIASES]), (_MANY,), dtype=np.float32),
        carray(pointer(words[MASKS]), (_MANY,), dtype=np.uint8),
    )
    ports = carray(pointer(words[PORTS]), (_MANY,), dtype=np.int64)
    strides = carray(pointer(words[STRIDES]), (_MANY,), dtype=np.int64)
    items, samples, counters = words[ITEMS], words[SAMPLES], words[COUNTERS]
    if counters == 0:
        arena = words[ARENA] + 4 * part * words[ARENA_FLOATS]
        for item in range(items * part // parts, items * (part + 1) // parts):
            for number in range(operations.shape[0]):
                operation = operations[number]
                _perform(operation, tables, arena, ports, strides, item, samples, 0, 1)
        return
    shares = SHARES * parts
    for item in range(items):
        for number in range(operations.shape[0]):
            operation = operations[number]
            taken = counters + 16 * (item * operations.shape[0] + number)
            share = count_up(taken)
            while share < shares:
                _perform(
                    operation, tables, words[ARENA], ports, strides, item, samples, share, shares
                )
                count_up(taken + 8)
                share = count_up(taken)
            wait(taken + 8, shares)


@job
@no_type_check
def execute(words, part, parts):
    """Run a program whose offsets are short."""
    offsets = carray(pointer(words[OFFSETS]), (_MANY,), dtype=np.uint16)
    _execute(words, part, parts, offsets)


@job
@no_type_check
def execute_wide(words, part, parts):
    """Run a program whose offsets are long."""
    offsets = carray(pointer(words[OFFSETS]), (_MANY,), dtype=np.uint32)
    _execute(words, part, parts, offsets)
