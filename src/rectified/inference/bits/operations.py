"""Operations of packed layers: compiled kernels where numba is, else PyTorch with the same results.

Each operation is a `torch.library` operator, `rectified::binary_*`, that `torch.compile` and
`torch.export` take as it is. Called eagerly they skip the operator: its dispatch takes longer than
a small product.

Shapes: bits (batch, height, width, words); panels as in `bits`; `alpha` and `bias` have an entry
for each output of all panels, and `thresholds` too; `flips` are the 32 bits of each panel.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rectified.inference.bits.bits import (
    PANEL,
    bits_to_words,
    panels_to_weight,
    words_for,
    words_to_signs,
)
from rectified.inference.kernels import has_kernels

BLOCK_WORDS = 4096  # 32 KiB of inputs stay in the first cache while panels pass
ALONE = 20_000  # word products, a microsecond or two, below which one thread does it all
ADDRESSES = 8  # words of a job that are addresses
FEW = 4  # rows, a tile of the kernels
PARTS = 4  # for each thread, so that a late one costs little


def _operator(schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function as an operator; the result calls it directly unless it is compiled."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        operator = torch.library.custom_op(
            f"rectified::binary_{name}", function, mutates_args=(), schema=schema
        )
        operator.register_fake(fake)

        def call(*arguments: Any) -> Any:
            return operator(*arguments) if torch.compiler.is_compiling() else function(*arguments)

        call.__doc__ = function.__doc__
        return call

    return register


@cache
def _compiled() -> tuple[Callable[..., None], Any]:
    """The `run` of the threads, and the module of jobs; both need numba."""
    from rectified.inference.bits import kernels
    from rectified.inference.threads import run

    return run, kernels


_HELD = threading.local()


def _threads() -> int:
    """Threads for the kernels: those that the caller gives to PyTorch."""
    return getattr(_HELD, "threads", 0) or torch.get_num_threads()


@contextlib.contextmanager
def quiet_floats() -> Iterator[None]:
    """Let PyTorch's own layers run on one thread; the kernels keep theirs.

    After a layer on several threads those of OpenMP watch for milliseconds, on the cores that the
    kernels need: a network that takes less than that loses more than such a layer gains.
    """
    threads = torch.get_num_threads()
    _HELD.threads = threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _HELD.threads = 0


def _run(name: str, plan: list[int], parts: int, threads: int) -> None:
    run, kernels = _compiled()
    run(getattr(kernels, name), np.array(plan, np.int64), parts, threads)


def _sizes(
    height: int, width: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    return (
        (height + 2 * padding[0] - kernel[0]) // stride[0] + 1,
        (width + 2 * padding[1] - kernel[1]) // stride[1] + 1,
    )


# ---- signs to bits


def _fake_pack(x: Tensor, thresholds: Tensor, flips: Tensor) -> Tensor:
    places = x.shape[:1] + x.shape[2:]
    return x.new_empty((*places, words_for(x.shape[1])), dtype=torch.int64)


@_operator("(Tensor x, Tensor thresholds, Tensor flips) -> Tensor", _fake_pack)
def pack(x: Tensor, thresholds: Tensor, flips: Tensor) -> Tensor:
    """Bits (x >= threshold) xor flip of each channel, the second axis; it becomes the last."""
    if not has_kernels():
        places = x.movedim(1, -1)
        return bits_to_words(places >= thresholds) ^ flips
    x = x.float()
    channels, threads = x.shape[1], _threads()
    images = x.ndim == 4
    in_rows = not images or x.is_contiguous(memory_format=torch.channels_last)
    x = x if images and in_rows else x.contiguous()
    bits = _fake_pack(x, thresholds, flips)
    floats = [x.data_ptr(), thresholds.data_ptr(), flips.data_ptr(), bits.data_ptr()]
    pixels = x.numel() // max(1, x.shape[0] * channels)
    threads = threads if x.numel() > ALONE else 1
    parts = 1 if threads == 1 else PARTS * threads
    if in_rows:
        _run("pack_rows", [*floats, x.shape[0] * pixels, channels], parts, threads)
    else:
        _run("pack_planes", [*floats, x.shape[0], channels, pixels], parts, threads)
    return bits


# ---- products


@lru_cache(maxsize=4096)
def _plan(
    shape: tuple[int, int, int, int],
    channels: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    threads: int,
) -> tuple[np.ndarray, int, int]:
    """The numbers of a job, its parts and its threads; room for the addresses in front."""
    images, height, width, words = shape
    rows, columns = _sizes(height, width, kernel, stride, padding)
    count, panels = images * rows * columns, -(-outputs // PANEL)
    if max(*kernel, *stride) == 1 and max(padding) == 0:  # a matrix product: one line of pixels
        images, height, width, rows, columns = 1, 1, count, 1, count
        down, across = 1, max(PANEL, BLOCK_WORDS // words)
    else:
        down = max(1, BLOCK_WORDS // (columns * words * stride[0] * stride[1]))
        across = max(1, columns)
    work = count * panels * PANEL * kernel[0] * kernel[1] * words
    threads = threads if work > ALONE else 1
    if images * panels * -(-rows // down) * -(-columns // across) < threads:
        down = -(-rows // threads)
        across = across if rows > 1 else -(-columns // threads)
    plan = [0] * ADDRESSES + [images, height, width, words, channels, outputs]
    plan += [*kernel, *stride, *padding, rows, columns, down, across]
    return np.array(plan, np.int64), 1 if threads == 1 else PARTS * threads, threads


def _multiply(
    name: str,
    tensors: Sequence[Tensor],
    channels: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> None:
    """Run a job on bits, panels, out, scale and shift."""
    if not tensors[2].numel():  # no example
        return
    run, kernels = _compiled()
    shape, threads = tuple(tensors[0].shape), _threads()
    plan, parts, threads = _plan(
        shape, channels, outputs, tuple(kernel), tuple(stride), tuple(padding), threads
    )
    words = plan.copy()
    words[:5] = [tensor.data_ptr() for tensor in tensors]
    run(getattr(kernels, name), words, parts, threads)


def _signs(
    bits: Tensor,
    panels: Tensor,
    channels: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The integer products by way of signs in floating point, pixel by pixel."""
    if not bits.numel():  # no example
        sizes = _sizes(bits.shape[1], bits.shape[2], kernel, stride, padding)
        return panels.new_zeros((bits.shape[0], *sizes, outputs), dtype=torch.float32)
    x = words_to_signs(bits, channels).movedim(-1, 1)
    weight = panels_to_weight(panels, outputs, channels, (kernel[0], kernel[1]))
    return F.conv2d(x, weight, None, tuple(stride), tuple(padding)).movedim(1, -1)


def _fake_products(
    bits: Tensor,
    panels: Tensor,
    alpha: Tensor,
    bias: Tensor,
    channels: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    rows, columns = _sizes(bits.shape[1], bits.shape[2], kernel, stride, padding)
    shape = (bits.shape[0], rows, columns, outputs)
    return bits.new_empty(shape, dtype=torch.float32).movedim(-1, 1)


_GEOMETRY = "int channels, int outputs, int[] kernel, int[] stride, int[] padding"


@_operator(
    f"(Tensor bits, Tensor panels, Tensor alpha, Tensor bias, {_GEOMETRY}) -> Tensor",
    _fake_products,
)
def products(
    bits: Tensor,
    panels: Tensor,
    alpha: Tensor,
    bias: Tensor,
    channels: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The convolution of signs, times `alpha`, plus `bias`; an image in channels-last order."""
    geometry = (channels, outputs, kernel, stride, padding)
    if not has_kernels():
        exact = _signs(bits, panels, *geometry)
        scaled = exact * alpha[:outputs] + bias[:outputs]
        return scaled.contiguous().movedim(-1, 1)
    out = _fake_products(bits, panels, alpha, bias, *geometry)
    _multiply("float_products", (bits, panels, out, alpha, bias), *geometry)
    return out


def _fake_linear(
    x: Tensor,
    thresholds: Tensor,
    flips: Tensor,
    panels: Tensor,
    alpha: Tensor,
    bias: Tensor,
    outputs: int,
) -> Tensor:
    return x.new_empty((x.shape[0], outputs), dtype=torch.float32)


@_operator(
    "(Tensor x, Tensor thresholds, Tensor flips, Tensor panels, Tensor alpha, Tensor bias, "
    "int outputs) -> Tensor",
    _fake_linear,
)
def linear(
    x: Tensor,
    thresholds: Tensor,
    flips: Tensor,
    panels: Tensor,
    alpha: Tensor,
    bias: Tensor,
    outputs: int,
) -> Tensor:
    """`pack` and `products` of rows in one; for a few rows in one job, which saves half the time.

    A product of one row takes 20 microseconds, as long as a few calls of PyTorch.
    """
    rows, channels = x.shape
    if not rows:
        return torch.empty(0, outputs, dtype=torch.float32)
    if rows > FEW or not has_kernels():
        bits = pack(x, thresholds, flips)[None, None]
        y = products(bits, panels, alpha, bias, channels, outputs, (1, 1), (1, 1), (0, 0))
        return y.movedim(1, -1).view(rows, outputs)
    run, kernels = _compiled()
    x = x.float().contiguous()
    out = torch.empty(rows, outputs, dtype=torch.float32)
    bits = torch.empty(rows, words_for(channels), dtype=torch.int64)
    plan, _, threads = _plan(
        (1, 1, rows, bits.shape[1]),
        channels,
        outputs,
        (1, 1),
        (1, 1),
        (0, 0),
        _threads(),
    )
    tensors = (bits, panels, out, alpha, bias, x, thresholds, flips)
    words = plan.copy()
    words[:ADDRESSES] = [tensor.data_ptr() for tensor in tensors]
    run(kernels.float_rows, words, threads, threads)
    return out


def _fake_bits(
    bits: Tensor,
    panels: Tensor,
    thresholds: Tensor,
    flips: Tensor,
    channels: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    rows, columns = _sizes(bits.shape[1], bits.shape[2], kernel, stride, padding)
    return bits.new_empty((bits.shape[0], rows, columns, words_for(outputs)))


@_operator(
    f"(Tensor bits, Tensor panels, Tensor thresholds, Tensor flips, {_GEOMETRY}) -> Tensor",
    _fake_bits,
)
def product_bits(
    bits: Tensor,
    panels: Tensor,
    thresholds: Tensor,
    flips: Tensor,
    channels: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Bits (product >= threshold) xor flip of each output."""
    geometry = (channels, outputs, kernel, stride, padding)
    if not has_kernels():
        reached = _signs(bits, panels, *geometry) >= thresholds[:outputs]
        words = bits_to_words(reached)
        return words ^ F.pad(flips, (0, len(flips) % 2)).view(torch.int64)
    out = _fake_bits(bits, panels, thresholds, flips, *geometry)
    if len(panels) % 2:  # the upper half of the last word is nobody's
        out.zero_()
    _multiply("bit_products", (bits, panels, out, thresholds, flips), *geometry)
    return out


# ---- pooling


def _fake_pool(
    bits: Tensor,
    flips: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    rows, columns = _sizes(bits.shape[1], bits.shape[2], kernel, stride, padding)
    return bits.new_empty((bits.shape[0], rows, columns, bits.shape[3]))


@_operator(
    "(Tensor bits, Tensor flips, int[] kernel, int[] stride, int[] padding) -> Tensor", _fake_pool
)
def pool(
    bits: Tensor,
    flips: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Each window to one pixel: `or`, and `and` for the channels whose bit is set in `flips`."""
    if not has_kernels():
        signs = words_to_signs(bits ^ flips, 64 * bits.shape[3]).movedim(-1, 1)
        pooled = F.max_pool2d(signs, tuple(kernel), tuple(stride), tuple(padding))
        return bits_to_words(pooled.movedim(1, -1) >= 0) ^ flips
    out = _fake_pool(bits, flips, kernel, stride, padding)
    images, height, width, words = bits.shape
    addresses = [bits.data_ptr(), 0, out.data_ptr(), 0, flips.data_ptr(), 0, 0, 0]
    shape = [images, height, width, words, 0, 0, *kernel, *stride, *padding]
    plan = [*addresses, *shape, out.shape[1], out.shape[2], 0, 0]
    threads = _threads() if bits.numel() > BLOCK_WORDS else 1
    _run("pool_bits", plan, 1 if threads == 1 else PARTS * threads, threads)
    return out
