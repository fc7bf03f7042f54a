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
Everything here is `nogil` and serial; threads share it as a job (`rectified.inference.threads`).

The functions that numba compiles carry no annotations and `no_type_check`: it reads their bytecode.
Compiling takes a few seconds once per machine; numba keeps the result in its cache folder.
"""

from typing import no_type_check

import numpy as np
from llvmlite import binding, ir
from numba import carray, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from rectified.inference.threads import (
    CACHED,
    address_in,
    fetch_add,
    job,
    load_acquire,
    pointer,
    wait,
)


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
        ("vectors", np.int64),  # of a row of a tile, or of the whole plane if `tall` is 0
        ("tall", np.int64),  # rows of a tile
        ("gathers", np.int64),  # how many input planes are brought together for each tile
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
    shape: tuple[int, int],
    values: ir.Value,
    offsets: ir.Value,
    begin: ir.Value,
    end: ir.Value,
    source: ir.Value,
    pitch: ir.Value,
) -> list[ir.Value]:
    """A tile of (rows, vectors) of sum_j values[j] * source[offsets[j] + row * pitch + lane]."""
    rows, width = shape
    # Few vectors would wait for their own previous sum: several chains run side by side.
    chains = {1: 4, 2: 4, 3: 2, 4: 2}.get(rows * width, 1)
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    sums = [
        [cgutils.alloca_once(builder, _VECTOR) for _ in range(rows * width)] for _ in range(chains)
    ]
    for slot in (slot for chain in sums for slot in chain):
        builder.store(zero, slot)
    starts = [_row(builder, source, pitch, row) for row in range(rows)]

    def add(j: ir.Value, chain: list[ir.Value]) -> None:
        value = _splat(builder, builder.load(builder.gep(values, [j])))
        offset = builder.zext(builder.load(builder.gep(offsets, [j])), _INT)
        for row, start in enumerate(starts):
            place = builder.gep(start, [offset])
            for index, slot in enumerate(chain[row * width : (row + 1) * width]):
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


def _row(builder: ir.IRBuilder, pointer: ir.Value, pitch: ir.Value, row: int) -> ir.Value:
    """The address `row` rows further on."""
    return builder.gep(pointer, [builder.mul(pitch, ir.Constant(_INT, row))]) if row else pointer


# Tiles of (rows, vectors): those of one row cut off what is no pixel, the others are whole.
TILES = [(1, width) for width in range(1, VECTORS + 1)] + [
    (rows, width) for rows in (2, 4, 8) for width in range(1, VECTORS // rows + 1)
]


@intrinsic
@no_type_check
def accumulate(
    typing,
    tall,
    width,
    values,
    offsets,
    begin,
    end,
    source,
    pitch,
    target,
    target_pitch,
    initial,
    given,
    bias,
    floor,
    mask,
):
    """One tile of one output: `tall` rows of `width` vectors of the module's formula.

    `source`, `target`, `initial` and `mask` are pointers; `given` tells whether to read `initial`,
    whose rows lie as the target's. A tile of one row is stored where `mask` has bits.
    """
    signature = types.void(
        tall,
        width,
        values,
        offsets,
        begin,
        end,
        source,
        pitch,
        target,
        target_pitch,
        initial,
        given,
        bias,
        floor,
        mask,
    )

    def generate(context, builder, signature, arguments):
        tall, width, _, _, begin, end, source, pitch, target, target_pitch = arguments[:10]
        initial, given, bias, floor, mask = arguments[10:]
        values, offsets = (
            context.make_array(signature.args[k])(context, builder, arguments[k]).data
            for k in (2, 3)
        )
        done = builder.append_basic_block("accumulated")
        code = builder.add(builder.mul(tall, ir.Constant(_INT, 16)), width)
        switch = builder.switch(code, done)
        for rows, vectors in TILES:
            block = builder.append_basic_block(f"accumulate{rows}x{vectors}")
            switch.add_case(ir.Constant(_INT, 16 * rows + vectors), block)
            builder.position_at_end(block)
            totals = _sums(builder, (rows, vectors), values, offsets, begin, end, source, pitch)
            slots = [cgutils.alloca_once(builder, _VECTOR) for _ in totals]
            for total, slot in zip(totals, slots, strict=True):
                builder.store(builder.fadd(total, _splat(builder, bias)), slot)
            with builder.if_then(given):
                for index, slot in enumerate(slots):
                    line = _row(builder, initial, target_pitch, index // vectors)
                    there = _load(builder, line, index % vectors)
                    builder.store(builder.fadd(builder.load(slot), there), slot)
            least = _splat(builder, floor)
            for index, slot in enumerate(slots):
                total = _at_least(builder, builder.load(slot), least)
                line = _row(builder, target, target_pitch, index // vectors)
                place = _at(builder, line, index % vectors)
                if rows == 1:
                    _store_where(builder, total, place, _mask(builder, mask, index))
                else:
                    builder.store(total, place, align=4)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
@no_type_check
def carry(typing, tall, width, source, pitch, target):
    """Copy a tile of `tall` rows of `width` vectors to consecutive floats."""
    signature = types.void(tall, width, source, pitch, target)

    def generate(context, builder, signature, arguments):
        tall, width, source, pitch, target = arguments
        done = builder.append_basic_block("carried")
        code = builder.add(builder.mul(tall, ir.Constant(_INT, 16)), width)
        switch = builder.switch(code, done)
        for rows, vectors in TILES:
            block = builder.append_basic_block(f"carry{rows}x{vectors}")
            switch.add_case(ir.Constant(_INT, 16 * rows + vectors), block)
            builder.position_at_end(block)
            for index in range(rows * vectors):
                line = _row(builder, source, pitch, index // vectors)
                value = _load(builder, line, index % vectors)
                builder.store(value, _at(builder, target, index), align=4)
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


@njit(nogil=True, cache=CACHED)
@no_type_check
def _share(count, rank, ranks):
    """The half-open range of `count` things that thread `rank` of `ranks` does."""
    return count * rank // ranks, count * (rank + 1) // ranks


@njit(nogil=True, cache=CACHED)
@no_type_check
def _lot(operation, rank, ranks):
    """The planes and the rows that thread `rank` of `ranks` does."""
    if operation.rows >= ranks:
        begin, end = _share(operation.rows, rank, ranks)
        return 0, operation.planes, begin, end
    first, last = _share(operation.planes, rank, ranks)
    return first, last, 0, operation.rows


@njit(nogil=True, cache=CACHED)
@no_type_check
def _sparse(operation, source, target, scratch, tables, rank, ranks):
    # A flat plane is cut into runs of vectors, one with whole vectors in a row into groups of rows.
    if operation.tall == 0:
        tiles = (operation.vectors + VECTORS - 1) // VECTORS
    else:
        tiles = (operation.rows + operation.tall - 1) // operation.tall
    # Threads share the image where it is large, so that each reads what it wrote before.
    lot = (0, operation.planes)
    begin, end = 0, tiles
    if tiles >= ranks:
        begin, end = _share(tiles, rank, ranks)
    else:
        lot = _share(operation.planes, rank, ranks)
    if operation.tall == 0:
        for block in range(operation.blocks):
            for tile in range(begin, end):
                vector = tile * operation.vectors // tiles
                width = (tile + 1) * operation.vectors // tiles - vector
                mask = operation.mask + vector * max(LANES // 8, 1)
                here = 4 * LANES * vector
                shape = (1, width)
                _tile(operation, source + here, 0, target + here, tables, block, lot, shape, mask)
    elif operation.gathers:
        for row, tall in _groups(operation, begin, end):
            _gather(operation, source + 4 * row * operation.source_row, scratch, tall)
            there = target + 4 * row * operation.target_row
            pitch, shape = LANES * operation.vectors, (tall, operation.vectors)
            for block in range(operation.blocks):
                _tile(operation, scratch, pitch, there, tables, block, lot, shape, operation.mask)
    else:
        for block in range(operation.blocks):
            for row, tall in _groups(operation, begin, end):
                here = source + 4 * row * operation.source_row
                there = target + 4 * row * operation.target_row
                pitch, shape = operation.source_row, (tall, operation.vectors)
                _tile(operation, here, pitch, there, tables, block, lot, shape, operation.mask)


# kept in no file: numba cannot compile a caller of a generator that it has read from one, as after
# a kill between the two
@njit(nogil=True, cache=False)
@no_type_check
def _groups(operation, begin, end):
    """First row and rows of each tile; the last rows of an image go by powers of two."""
    for tile in range(begin, end):
        row, last = tile * operation.tall, min((tile + 1) * operation.tall, operation.rows)
        tall = operation.tall
        while row < last:
            while row + tall > last:
                tall //= 2
            yield row, tall
            row += tall


@njit(nogil=True, cache=CACHED)
@no_type_check
def _gather(operation, source, scratch, tall):
    """Bring a tile's inputs together, from planes so far apart that they share cache lines."""
    floats = operation.tall * operation.vectors * LANES
    for channel in range(operation.gathers):
        here = floats_at(source + 4 * channel * operation.source_plane)
        there = floats_at(scratch + 4 * channel * floats)
        carry(tall, operation.vectors, here, operation.source_row, there)


@njit(nogil=True, cache=CACHED)
@no_type_check
def _tile(operation, source, pitch, target, tables, block, lot, shape, mask):
    """One block of inputs of a tile of the outputs in `lot`."""
    values, offsets, starts, bases, biases, masks = tables
    begins = operation.starts + block * operation.planes
    floor = operation.floor if block == operation.blocks - 1 else np.float32(-np.inf)
    initial = operation.initial if block == 0 else operation.target
    origin = source + 4 * bases[operation.bases + block]
    for row in range(lot[0], lot[1]):
        plane = target + 4 * row * operation.target_plane
        accumulate(
            shape[0],
            shape[1],
            values,
            offsets,
            starts[begins + row],
            starts[begins + row + 1],
            floats_at(origin),
            pitch,
            floats_at(plane),
            operation.target_row,
            floats_at(plane + 4 * (initial - operation.target)),
            initial >= 0,
            biases[operation.biases + row] if block == 0 else np.float32(0),
            floor,
            bytes_of(masks, mask),
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


@njit(nogil=True, cache=CACHED)
@no_type_check
def _copy(operation, source, target, rank, ranks):
    step, columns, floor = operation.source_column, operation.columns, operation.floor
    given = operation.initial >= 0
    shift = 4 * (operation.initial - operation.target) if given else 0
    whole = columns - columns % LANES if step == 1 else 0
    first, last, begin, end = _lot(operation, rank, ranks)
    for plane in range(first, last):
        for row in range(begin, end):
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


@njit(nogil=True, cache=CACHED)
@no_type_check
def _maximum(operation, source, target, rank, ranks):
    step = operation.source_column
    first, last, begin, end = _lot(operation, rank, ranks)
    for plane in range(first, last):
        for row in range(begin, end):
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


@njit(nogil=True, cache=CACHED, fastmath={"reassoc"})
@no_type_check
def _window_sum(source, rows, columns, pitch):
    total = np.float32(0)
    for y in range(rows):
        line = carray(floats_at(source + 4 * y * pitch), (columns,))
        for column in range(columns):
            total += line[column]
    return total


@njit(nogil=True, cache=CACHED)
@no_type_check
def _mean(operation, source, target, rank, ranks):
    height, width = operation.window_rows, operation.window_columns
    first, last, begin, end = _lot(operation, rank, ranks)
    for plane in range(first, last):
        for row in range(begin, end):
            there = operation.target_plane * plane + operation.target_row * row
            new = carray(floats_at(target + 4 * there), (operation.columns,))
            for column in range(operation.columns):
                here = operation.source_plane * plane + operation.source_row * row
                corner = source + 4 * (here + operation.source_column * column)
                total = _window_sum(corner, height, width, operation.window_pitch)
                new[column] = total / np.float32(height * width)


@njit(nogil=True, cache=CACHED)
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


@njit(nogil=True, cache=CACHED)
@no_type_check
def _perform(operation, tables, arena, scratch, ports, strides, item, samples, rank, ranks):
    origin, goal = operation.source_port, operation.target_port
    source = arena if origin == 0 else ports[origin] + 4 * item * strides[origin]
    target = arena if goal == 0 else ports[goal] + 4 * item * strides[goal]
    source += 4 * operation.source
    target += 4 * operation.target
    if operation.kind == SPARSE:
        _sparse(operation, source, target, scratch, tables, rank, ranks)
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


# The words of a run. First what stays: operations and tables of the program.
OPERATIONS, COUNT, VALUES, OFFSETS, STARTS, BASES, BIASES, MASKS, STRIDES = range(9)
ARENA_FLOATS, SCRATCH_FLOATS = 9, 10  # of each thread; the scratch is the end of its arena
# Then what a call brings: its arena, items, samples, whether its threads share every operation,
# addresses of inputs and outputs (port 1 is the first), and the zeros that `counters` tells.
ARENA, ITEMS, SAMPLES, SHARED, COUNTERS = range(11, 16)
PORTS = 15  # port k is word PORTS + k
_MANY = 1 << 40  # entries of a table whose length nobody needs


@njit(nogil=True, cache=CACHED)
@no_type_check
def _execute(words, part, parts, offsets):
    """Run a program on a batch: this part's items, or, with `SHARED`, a share of each operation.

    With `SHARED`, every part does shares of an operation until none is left, so nobody waits for a
    part that has not begun; only a share that was begun is waited for. Each operation of each item
    has counters of its own: shares done, then for each share how often it was asked for.
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
    ports = carray(pointer(address_in(words) + 8 * PORTS), (_MANY,), dtype=np.int64)
    strides = carray(pointer(words[STRIDES]), (_MANY,), dtype=np.int64)
    items, samples = words[ITEMS], words[SAMPLES]
    arena = words[ARENA] + 4 * part * words[ARENA_FLOATS]
    scratch = arena + 4 * (words[ARENA_FLOATS] - words[SCRATCH_FLOATS])
    if not words[SHARED]:
        for item in range(items * part // parts, items * (part + 1) // parts):
            for number in range(operations.shape[0]):
                operation = operations[number]
                _perform(operation, tables, arena, scratch, ports, strides, item, samples, 0, 1)
        return
    shares = SHARES * parts
    done = address_in(words) + 8 * words[COUNTERS]
    for item in range(items):
        for number in range(operations.shape[0]):
            operation = operations[number]
            # First one's own shares, which read what this thread wrote, then those left over.
            for step in range(shares):
                share = (part * SHARES + step) % shares
                taken = done + 8 * (1 + share)
                if load_acquire(taken) == 0 and fetch_add(taken) == 0:
                    _perform(
                        operation,
                        tables,
                        words[ARENA],
                        scratch,
                        ports,
                        strides,
                        item,
                        samples,
                        share,
                        shares,
                    )
                    fetch_add(done)
            wait(done, shares)
            done += 8 * (1 + shares)


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
