"""The machine code of packed layers: xor, popcount and add on explicit vectors.

One tile multiplies the inputs of up to four pixels (or rows) with a panel of 32 outputs. For every
word of a pixel's inputs, the 32 words of the panel are loaded once; each pixel's word is broadcast,
xored with them, counted and added. Nothing is summed across lanes. LLVM does not find this form by
itself, so the vectors are written out: eight words where the CPU has AVX-512, four elsewhere (AVX2
counts bits by table look-up, which LLVM knows how to write).

A convolution is the same sum over the taps of its kernel. The taps of one kernel row lie side by
side in the image, pixel by pixel, so they are one run of words: no im2col, no table of offsets. At
the border the taps outside the image are left out, in the sum and in its length K, which makes the
padding exactly zero. Border columns are tiled downwards, the interior across.

What leaves a tile is d = K - 2 count, per pixel and output, as

    float   d * alpha + bias                     two roundings, as the layer in floating point has
    bits    (d >= threshold) xor flip            what the next packed layer reads

Jobs of `rectified.inference.threads`: serial, `nogil`, addresses and sizes in; compiled once per
machine.
"""

from collections.abc import Sequence
from typing import no_type_check

import numpy as np
from llvmlite import binding, ir
from numba import carray, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from rectified.inference.threads import CACHED, job, pointer


def lanes(features: str) -> int:
    """The number of 64-bit words in one vector of a CPU with these LLVM features.

    Example:
        >>> lanes("+avx2,+fma"), lanes("+avx2,+avx512f")
        (4, 8)
    """
    return 8 if "+avx512f" in features.split(",") else 4


LANES = lanes(getattr(config, "CPU_FEATURES", None) or binding.get_host_cpu_features().flatten())
PANEL = 32
ROWS = 4 if LANES == 8 else 2  # pixels of a tile: 16 of 32 registers, or 8 of 16, add up counts
VECTORS = 4
GROUPS = PANEL // (LANES * VECTORS)  # in which a panel is done: all at once, or in two halves

(
    BITS,
    PANELS,
    OUT,
    SCALE,  # alphas, or thresholds
    SHIFT,  # biases, or flips
    FLOATS,  # what `float_rows` packs, with what thresholds and flips
    INPUT_THRESHOLDS,
    INPUT_FLIPS,
    IMAGES,
    HEIGHT,
    WIDTH,
    WORDS,
    CHANNELS,
    OUTPUTS,
    KERNEL_ROWS,
    KERNEL_COLUMNS,
    STRIDE_ROWS,
    STRIDE_COLUMNS,
    PAD_ROWS,
    PAD_COLUMNS,
    OUT_ROWS,
    OUT_COLUMNS,
    BLOCK_ROWS,  # of output pixels that one unit of work holds
    BLOCK_COLUMNS,
    SIZE,
) = range(25)

_INT, _INT32, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_WORDS = ir.VectorType(_INT, LANES)
_COUNTS = ir.VectorType(_INT32, LANES)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)


def _splat(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(kind, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
    zeros = ir.Constant(ir.VectorType(_INT32, kind.count), [0] * kind.count)
    return builder.shuffle_vector(single, undefined, zeros)


def _at(builder: ir.IRBuilder, address: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
    """A pointer to something `offset` bytes behind an address."""
    place = builder.add(address, ir.Constant(_INT, offset))
    return builder.inttoptr(place, kind.as_pointer())


def _count(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    kind = ir.FunctionType(_WORDS, [_WORDS])  # llvmlite's own ctpop takes no vectors
    name = f"llvm.ctpop.v{LANES}i64"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [value])


def _products(
    builder: ir.IRBuilder, rows: int, group: int, arguments: Sequence[ir.Value]
) -> list[list[ir.Value]]:
    """d of `rows` pixels and one group of outputs: VECTORS vectors of LANES counts each."""
    pixels, step, segments, pitch, words, panel, panel_pitch, total = arguments
    zero = ir.Constant(_WORDS, [0] * LANES)
    sums = [[cgutils.alloca_once(builder, _WORDS) for _ in range(VECTORS)] for _ in range(rows)]
    for slot in (slot for row in sums for slot in row):
        builder.store(zero, slot)
    eight = ir.Constant(_INT, 8)
    with cgutils.for_range(builder, segments, intp=_INT) as segment:
        read = builder.add(pixels, builder.mul(builder.mul(segment.index, pitch), eight))
        met = builder.add(panel, builder.mul(builder.mul(segment.index, panel_pitch), eight))
        with cgutils.for_range(builder, words, intp=_INT) as word:
            place = builder.add(read, builder.mul(word.index, eight))
            wide = builder.add(met, builder.mul(word.index, ir.Constant(_INT, 8 * PANEL)))
            weights = [
                builder.load(
                    _at(builder, wide, 8 * LANES * (VECTORS * group + index), _WORDS), align=8
                )
                for index in range(VECTORS)
            ]
            for number, row in enumerate(sums):
                here = builder.add(place, builder.mul(step, ir.Constant(_INT, 8 * number)))
                value = builder.load(_at(builder, here, 0, _INT))
                same = _splat(builder, value, _WORDS)
                for weight, slot in zip(weights, row, strict=True):
                    count = _count(builder, builder.xor(same, weight))
                    builder.store(builder.add(builder.load(slot), count), slot)
    length = _splat(builder, builder.trunc(total, _INT32), _COUNTS)
    one = ir.Constant(_COUNTS, [1] * LANES)
    return [
        [
            builder.sub(length, builder.shl(builder.trunc(builder.load(slot), _COUNTS), one))
            for slot in row
        ]
        for row in sums
    ]


def _store_where(builder: ir.IRBuilder, value: ir.Value, place: ir.Value, mask: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_FLOATS, place.type, _INT32, _BITS])
    name = f"llvm.masked.store.v{LANES}f32.p0"
    store = cgutils.get_or_insert_function(builder.module, kind, name)
    builder.call(store, [value, place, ir.Constant(_INT32, 4), mask])


def _tile(rows: int, finish: str):  # type: ignore[no-untyped-def]
    """One tile of `rows` pixels and a panel; what leaves it is written to `out`.

    All arguments are integers: addresses in bytes, `step`, `pitch` and `panel_pitch` in words,
    `out_step` in bytes. `columns` is how many outputs of the panel there are.
    """

    @intrinsic
    @no_type_check
    def tile(
        typing,
        pixels,
        step,
        segments,
        pitch,
        words,
        panel,
        panel_pitch,
        total,
        scale,
        shift,
        out,
        out_step,
        columns,
    ):
        def generate(context, builder, signature, arguments):
            scale, shift, out, out_step, columns = arguments[8:]
            places = [
                builder.add(out, builder.mul(out_step, ir.Constant(_INT, row)))
                for row in range(rows)
            ]
            packed = [ir.Constant(_INT32, 0)] * rows
            for group in range(GROUPS):
                for row, vectors in enumerate(_products(builder, rows, group, arguments[:8])):
                    for index, value in enumerate(vectors):
                        first = LANES * (VECTORS * group + index)
                        if finish == "float":
                            _finish_float(builder, value, first, scale, shift, places[row], columns)
                        else:
                            bits = _finish_bits(builder, value, first, scale)
                            packed[row] = builder.or_(packed[row], bits)
            if finish == "bits":
                flips = builder.load(_at(builder, shift, 0, _INT32))
                for place, bits in zip(places, packed, strict=True):
                    builder.store(builder.xor(bits, flips), _at(builder, place, 0, _INT32))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 13), generate

    return tile


def _finish_float(
    builder: ir.IRBuilder,
    value: ir.Value,
    first: int,
    scale: ir.Value,
    shift: ir.Value,
    place: ir.Value,
    columns: ir.Value,
) -> None:
    alpha = builder.load(_at(builder, scale, 4 * first, _FLOATS), align=4)
    bias = builder.load(_at(builder, shift, 4 * first, _FLOATS), align=4)
    result = builder.fadd(builder.fmul(builder.sitofp(value, _FLOATS), alpha), bias)
    lane = ir.Constant(_COUNTS, [first + index for index in range(LANES)])
    last = _splat(builder, builder.trunc(columns, _INT32), _COUNTS)
    mask = builder.icmp_signed("<", lane, last)
    _store_where(builder, result, _at(builder, place, 4 * first, _FLOATS), mask)


def _finish_bits(
    builder: ir.IRBuilder, value: ir.Value, first: int, thresholds: ir.Value
) -> ir.Value:
    least = builder.load(_at(builder, thresholds, 4 * first, _COUNTS), align=4)
    reached = builder.bitcast(builder.icmp_signed(">=", value, least), ir.IntType(LANES))
    return builder.shl(builder.zext(reached, _INT32), ir.Constant(_INT32, first))


_float_tile, _float_pair, _float_one = (_tile(rows, "float") for rows in (ROWS, 2, 1))
_bits_tile, _bits_pair, _bits_one = (_tile(rows, "bits") for rows in (ROWS, 2, 1))


def _strip_of(tile, pair, one):  # type: ignore[no-untyped-def]
    @njit(nogil=True, cache=CACHED)
    @no_type_check
    def strip(
        count,
        pixels,
        step,
        segments,
        pitch,
        words,
        panel,
        panel_pitch,
        total,
        scale,
        shift,
        out,
        out_step,
        columns,
    ):
        """Any number of pixels, `step` words apart, in the largest tiles that fit."""
        while count >= ROWS:
            tile(
                pixels,
                step,
                segments,
                pitch,
                words,
                panel,
                panel_pitch,
                total,
                scale,
                shift,
                out,
                out_step,
                columns,
            )
            pixels += 8 * ROWS * step
            out += ROWS * out_step
            count -= ROWS
        while count >= 2:
            pair(
                pixels,
                step,
                segments,
                pitch,
                words,
                panel,
                panel_pitch,
                total,
                scale,
                shift,
                out,
                out_step,
                columns,
            )
            pixels += 16 * step
            out += 2 * out_step
            count -= 2
        if count:
            one(
                pixels,
                step,
                segments,
                pitch,
                words,
                panel,
                panel_pitch,
                total,
                scale,
                shift,
                out,
                out_step,
                columns,
            )

    return strip


_float_strip = _strip_of(_float_tile, _float_pair, _float_one)
_bits_strip = _strip_of(_bits_tile, _bits_pair, _bits_one)


def _unit_of(strip, is_float):  # type: ignore[no-untyped-def]
    @njit(nogil=True, cache=CACHED)
    @no_type_check
    def unit(plan, image, row, column, number):
        """One block of output pixels of one image, for one panel of outputs."""
        words, width = plan[WORDS], plan[WIDTH]
        height, outputs = plan[HEIGHT], plan[OUTPUTS]
        kernel, columns = plan[KERNEL_ROWS], plan[KERNEL_COLUMNS]
        down, right = plan[STRIDE_ROWS], plan[STRIDE_COLUMNS]
        above, before = plan[PAD_ROWS], plan[PAD_COLUMNS]
        out_width = plan[OUT_COLUMNS]
        bottom = min(row + plan[BLOCK_ROWS], plan[OUT_ROWS])
        end = min(column + plan[BLOCK_COLUMNS], out_width)
        source = plan[BITS] + 8 * image * height * width * words
        panel = plan[PANELS] + 8 * PANEL * number * kernel * columns * words
        left = outputs - PANEL * number
        scale = plan[SCALE] + 4 * PANEL * number
        if is_float:
            shift = plan[SHIFT] + 4 * PANEL * number
            pixel = 4 * outputs
            out = plan[OUT] + 4 * PANEL * number
        else:
            shift = plan[SHIFT] + 4 * number
            pixel = 8 * ((outputs + 63) // 64)
            out = plan[OUT] + 4 * number
        out += pixel * image * plan[OUT_ROWS] * out_width
        # where all taps lie inside: [inner, outer) of the columns, [top, low) of the rows
        inner = max(column, (before + right - 1) // right)
        outer = max(inner, min(end, (width + before - columns) // right + 1))
        top = max(row, (above + down - 1) // down)
        low = max(top, min(bottom, (height + above - kernel) // down + 1))
        pitch, panel_pitch = width * words, PANEL * columns * words
        for y in range(row, bottom):
            first = max(0, above - y * down)
            taps = max(0, min(kernel, height + above - y * down) - first)
            line = source + 8 * (y * down - above + first) * pitch
            there = panel + 8 * first * panel_pitch
            if outer > inner:
                strip(
                    outer - inner,
                    line + 8 * (inner * right - before) * words,
                    right * words,
                    taps,
                    pitch,
                    columns * words,
                    there,
                    panel_pitch,
                    taps * columns * plan[CHANNELS],
                    scale,
                    shift,
                    out + pixel * (y * out_width + inner),
                    pixel,
                    left,
                )
            if top <= y < low:
                continue  # its border columns are done below, downwards
            x = column
            while x < end:
                if x == inner and outer > inner:
                    x = outer
                    continue
                begin = max(0, before - x * right)
                across = max(0, min(columns, width + before - x * right) - begin)
                strip(
                    1,
                    line + 8 * (x * right - before + begin) * words,
                    0,
                    taps,
                    pitch,
                    across * words,
                    there + 8 * PANEL * begin * words,
                    panel_pitch,
                    taps * across * plan[CHANNELS],
                    scale,
                    shift,
                    out + pixel * (y * out_width + x),
                    pixel,
                    left,
                )
                x += 1
        if low <= top:
            return
        x = column
        while x < end:
            if x == inner and outer > inner:
                x = outer
                continue
            begin = max(0, before - x * right)
            across = max(0, min(columns, width + before - x * right) - begin)
            strip(
                low - top,
                source + 8 * ((top * down - above) * pitch + (x * right - before + begin) * words),
                down * pitch,
                kernel,
                pitch,
                across * words,
                panel + 8 * PANEL * begin * words,
                panel_pitch,
                kernel * across * plan[CHANNELS],
                scale,
                shift,
                out + pixel * (top * out_width + x),
                pixel * out_width,
                left,
            )
            x += 1

    return unit


_float_unit = _unit_of(_float_strip, True)
_bits_unit = _unit_of(_bits_strip, False)


@njit(nogil=True, cache=CACHED)
@no_type_check
def _divided(plan):
    """The numbers of blocks down, of blocks across, and of panels."""
    down = (plan[OUT_ROWS] + plan[BLOCK_ROWS] - 1) // plan[BLOCK_ROWS]
    across = (plan[OUT_COLUMNS] + plan[BLOCK_COLUMNS] - 1) // plan[BLOCK_COLUMNS]
    return down, across, (plan[OUTPUTS] + PANEL - 1) // PANEL


@job
@no_type_check
def float_products(words, part, parts):
    """Scaled products of packed inputs and weights; `words` as the constants above number them."""
    plan = carray(words, (SIZE,))
    down, across, panels = _divided(plan)
    units = plan[IMAGES] * down * across * panels
    for number in range(units * part // parts, units * (part + 1) // parts):
        block, panel = number // panels, number % panels
        place, column = block // across, block % across
        _float_unit(
            plan,
            place // down,
            place % down * plan[BLOCK_ROWS],
            column * plan[BLOCK_COLUMNS],
            panel,
        )


@job
@no_type_check
def bit_products(words, part, parts):
    """Products of packed inputs and weights as bits; `words` as the constants above number them."""
    plan = carray(words, (SIZE,))
    down, across, panels = _divided(plan)
    units = plan[IMAGES] * down * across * panels
    for number in range(units * part // parts, units * (part + 1) // parts):
        block, panel = number // panels, number % panels
        place, column = block // across, block % across
        _bits_unit(
            plan,
            place // down,
            place % down * plan[BLOCK_ROWS],
            column * plan[BLOCK_COLUMNS],
            panel,
        )


@intrinsic
@no_type_check
def _word_of_row(typing, floats, thresholds):
    """64 floats side by side to a word: bit j is floats[j] >= thresholds[j]."""

    def generate(context, builder, signature, arguments):
        kind = ir.VectorType(_FLOAT, 64)
        values, least = (builder.load(_at(builder, a, 0, kind), align=4) for a in arguments)
        return builder.bitcast(builder.fcmp_ordered(">=", values, least), _INT)

    return types.uint64(types.int64, types.int64), generate


@intrinsic
@no_type_check
def _words_of_planes(typing, floats, plane, channels, thresholds, out, out_step):
    """2 LANES pixels of up to 64 planes to one word each, `out_step` bytes apart."""

    def generate(context, builder, signature, arguments):
        floats, plane, channels, thresholds, out, out_step = arguments
        zero = ir.Constant(_WORDS, [0] * LANES)
        sums = [cgutils.alloca_once(builder, _WORDS) for _ in range(2)]
        for slot in sums:
            builder.store(zero, slot)
        four, one = ir.Constant(_INT, 4), ir.Constant(_INT, 1)
        with cgutils.for_range(builder, channels, intp=_INT) as channel:
            at = builder.mul(channel.index, four)
            least = builder.load(_at(builder, builder.add(thresholds, at), 0, _FLOAT))
            level = _splat(builder, least, _FLOATS)
            bit = _splat(builder, builder.shl(one, channel.index), _WORDS)
            here = builder.add(floats, builder.mul(at, plane))
            for index, slot in enumerate(sums):
                values = builder.load(_at(builder, here, 4 * LANES * index, _FLOATS), align=4)
                reached = builder.fcmp_ordered(">=", values, level)
                chosen = builder.select(reached, bit, zero)
                builder.store(builder.or_(builder.load(slot), chosen), slot)
        for index, slot in enumerate(sums):
            vector = builder.load(slot)
            for lane in range(LANES):
                step = builder.mul(out_step, ir.Constant(_INT, LANES * index + lane))
                place = _at(builder, builder.add(out, step), 0, _INT)
                builder.store(
                    builder.extract_element(vector, ir.Constant(_INT32, lane)), place, align=8
                )
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@njit(nogil=True, cache=CACHED)
@no_type_check
def _pack_row(line, thresholds, flips, out, channels):
    count, whole = (channels + 63) // 64, channels // 64
    flip = carray(pointer(flips), (count,), np.uint64)
    packed = carray(pointer(out), (count,), np.uint64)
    for word in range(whole):
        packed[word] = _word_of_row(line + 256 * word, thresholds + 256 * word) ^ flip[word]
    if whole < count:
        rest = carray(pointer(line + 256 * whole), (channels - 64 * whole,), np.float32)
        least = carray(pointer(thresholds + 256 * whole), (len(rest),), np.float32)
        bits = np.uint64(0)
        for index in range(len(rest)):
            if rest[index] >= least[index]:
                bits |= np.uint64(1) << np.uint64(index)
        packed[whole] = bits ^ flip[whole]


@job
@no_type_check
def pack_rows(words, part, parts):
    """Rows of floats to words: addresses of floats, thresholds, flips, out; rows, channels."""
    floats, thresholds, flips, out, rows, channels = carray(words, (6,))
    size = 8 * ((channels + 63) // 64)
    for row in range(rows * part // parts, rows * (part + 1) // parts):
        _pack_row(floats + 4 * row * channels, thresholds, flips, out + size * row, channels)


@job
@no_type_check
def float_rows(words, part, parts):
    """`float_products` of a few rows of floats.

    Every part packs all rows, to the same place and the same bits: they are few, and to wait for
    another part would take longer.
    """
    plan = carray(words, (SIZE,))
    floats, thresholds, flips = plan[FLOATS], plan[INPUT_THRESHOLDS], plan[INPUT_FLIPS]
    channels, size = plan[CHANNELS], 8 * plan[WORDS]
    for row in range(plan[OUT_COLUMNS]):
        line = floats + 4 * row * channels
        _pack_row(line, thresholds, flips, plan[BITS] + size * row, channels)
    panels = (plan[OUTPUTS] + PANEL - 1) // PANEL
    for panel in range(panels * part // parts, panels * (part + 1) // parts):
        _float_unit(plan, 0, 0, 0, panel)


@job
@no_type_check
def pack_planes(words, part, parts):
    """Planes of floats to words pixel by pixel: as `pack_rows`, with images, channels, pixels."""
    floats, thresholds, flips, out, images, channels, pixels = carray(words, (7,))
    count = (channels + 63) // 64
    width = 2 * LANES
    tiles = (pixels + width - 1) // width
    flip = carray(pointer(flips), (count,), np.uint64)
    units = images * tiles
    for unit in range(units * part // parts, units * (part + 1) // parts):
        image, pixel = unit // tiles, unit % tiles * width
        source = floats + 4 * (image * channels * pixels + pixel)
        target = out + 8 * (image * pixels + pixel) * count
        taken = min(width, pixels - pixel)
        for word in range(count):
            here = min(64, channels - 64 * word)
            plane, least = source + 256 * word * pixels, thresholds + 256 * word
            if taken == width:
                _words_of_planes(plane, pixels, here, least, target + 8 * word, 8 * count)
            else:
                level = carray(pointer(least), (here,), np.float32)
                for index in range(taken):
                    bits = np.uint64(0)
                    for channel in range(here):
                        place = plane + 4 * (channel * pixels + index)
                        if carray(pointer(place), (1,), np.float32)[0] >= level[channel]:
                            bits |= np.uint64(1) << np.uint64(channel)
                    carray(pointer(target + 8 * (index * count + word)), (1,), np.uint64)[0] = bits
            if flip[word]:
                packed = carray(pointer(target + 8 * word), (taken * count - word,), np.uint64)
                for index in range(taken):
                    packed[index * count] ^= flip[word]


@job
@no_type_check
def pool_bits(words, part, parts):
    """Windows of packed pixels to one: or, but `and` for the channels of `flips`.

    `flips` are complemented on the way in and out: an `and` is an `or` of complements.
    """
    plan = carray(words, (SIZE,))
    count, height, width = plan[WORDS], plan[HEIGHT], plan[WIDTH]
    flips = carray(pointer(plan[SHIFT]), (count,), np.uint64)
    rows = plan[IMAGES] * plan[OUT_ROWS]
    for number in range(rows * part // parts, rows * (part + 1) // parts):
        image, row = number // plan[OUT_ROWS], number % plan[OUT_ROWS]
        source = plan[BITS] + 8 * image * height * width * count
        top = row * plan[STRIDE_ROWS] - plan[PAD_ROWS]
        for column in range(plan[OUT_COLUMNS]):
            left = column * plan[STRIDE_COLUMNS] - plan[PAD_COLUMNS]
            place = plan[OUT] + 8 * (number * plan[OUT_COLUMNS] + column) * count
            target = carray(pointer(place), (count,), np.uint64)
            target[:] = 0
            for y in range(max(0, top), min(height, top + plan[KERNEL_ROWS])):
                for x in range(max(0, left), min(width, left + plan[KERNEL_COLUMNS])):
                    pixel = pointer(source + 8 * (y * width + x) * count)
                    here = carray(pixel, (count,), np.uint64)
                    for word in range(count):
                        target[word] |= here[word] ^ flips[word]
            for word in range(count):
                target[word] ^= flips[word]
