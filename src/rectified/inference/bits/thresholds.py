"""Thresholds: all that stands between two 1-bit layers.

A 1-bit layer's product d is an integer between -K and K, and what comes between it and the next
sign (scale, bias, ReLU, batch norm, ...) works on each channel alone. So the next layer's input bit
is a function of d with two values, and if the functions in between are monotone it has one step:

    bit = (d >= threshold) xor flip.

The threshold is not derived but *tabulated*: the modules themselves are run on every value that d
can take. So the bits are those of the network in floating point, rounding and all. A max pool on
the way becomes `or` or `and` of the bits in its window: the largest value in the window has the
largest d where what comes before the pool rises with d, and the smallest where it falls.

What comes before the *first* 1-bit layer is not an integer, but floats are as discrete: the step is
found by bisection over their order, again with the modules themselves (`input_thresholds`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn

from rectified.graphs import operations
from rectified.graphs.copies import is_hooked
from rectified.inference.bits.bits import PANEL, bits_to_words, flips_to_halves

_LEAST, _MOST = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class Step:
    """The step by which the products of a layer become bits.

    Attributes:
        thresholds: one per output, of all panels.
        flips: 32 bits per panel.
        pool_flips: words of the channels whose windows are `and`ed.
    """

    thresholds: Int32[Tensor, " outputs"]
    flips: Int32[Tensor, " panels"]
    pool_flips: Int64[Tensor, " words"]


def is_monotone(module: nn.Module) -> bool:
    """Whether a module works on each channel alone and never turns back.

    Example:
        >>> is_monotone(nn.BatchNorm2d(3)), is_monotone(nn.GELU()), is_monotone(nn.LeakyReLU(-1))
        (True, False, False)
    """
    if is_hooked(module):
        return False
    if isinstance(module, nn.LeakyReLU):
        return module.negative_slope >= 0
    if isinstance(module, nn.PReLU):
        return bool((module.weight >= 0).all())
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module.running_mean is not None  # else it would depend on the batch
    return type(module) in operations.modules(operations.Trait.MONOTONE)


def fits(module: nn.Module, channels: int) -> bool:
    """Whether a monotone module has as many entries as there are channels, or one for all.

    A norm behind a linear layer has not if it works on another axis than the features.

    Example:
        >>> fits(nn.BatchNorm1d(7), 70), fits(nn.ReLU(), 70)
        (False, True)
    """
    return entries(module) in (1, channels)


def entries(module: nn.Module) -> int:
    """The entries along the second axis that a monotone module tells apart; 1 if it does not."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module.num_features
    return module.num_parameters if isinstance(module, nn.PReLU) else 1


@torch.no_grad()
def tabulate(
    alpha: Float[Tensor, " outputs"],
    bias: Float[Tensor, " outputs"],
    length: int,
    before: Sequence[nn.Module],
    after: Sequence[nn.Module],
    *,
    is_image: bool,
) -> Step | None:
    """The step of every output, from all values of its product.

    Args:
        alpha: the layer's scale.
        bias: its bias, zeros if it has none.
        length: K, the largest product.
        before: modules between the layer and a max pool, in evaluation mode.
        after: those behind the pool; without a pool the division does not matter.
        is_image: whether the modules expect images (a convolution's) or rows.

    Returns:
        The step; None if a bit turns more than once, which a max pool could not follow either.
    """
    d = torch.arange(-length, length + 1, dtype=torch.float32)[:, None]
    values = d * alpha + bias
    values = values[:, :, None, None] if is_image else values
    inner = _through(before, values)
    bits = (_through(after, inner) >= 0).flatten(1)
    inner = inner.flatten(1)
    rises = (inner[1:] >= inner[:-1]).all(0)
    falls = (inner[1:] <= inner[:-1]).all(0)
    turns = (bits[1:] != bits[:-1]).sum(0)
    if not ((rises | falls) & (turns <= 1)).all():
        return None
    downwards = bits[0] & ~bits[-1]
    upwards = bits[-1] & ~bits[0]
    # where the bit turns; of a constant bit: always reached, or never
    turning = (bits != bits[0]).int().argmax(0) - length
    constant = torch.where(bits[0], _LEAST, _MOST)
    thresholds = torch.where(turns > 0, turning, constant).int()
    needs_all = torch.where(rises, downwards, upwards)
    return _step(thresholds, downwards, needs_all)


def _step(
    thresholds: Int32[Tensor, " outputs"],
    flipped: Bool[Tensor, " outputs"],
    needs_all: Bool[Tensor, " outputs"],
) -> Step:
    rest = -len(thresholds) % PANEL
    padded = torch.nn.functional.pad(thresholds, (0, rest), value=_MOST)
    halves = flips_to_halves(bits_to_words(flipped), len(padded) // PANEL)
    return Step(padded, halves, bits_to_words(needs_all))


def _through(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


@torch.no_grad()
def input_thresholds(
    modules: Sequence[nn.Module], channels: int, *, is_image: bool
) -> tuple[Float[Tensor, " channels"], Int64[Tensor, " words"]]:
    """Thresholds and flips with (x >= threshold) xor flip = (modules(x) >= 0), for every float x.

    Args:
        modules: monotone and in evaluation mode.
        channels: of x.
        is_image: whether the modules expect images or rows.

    Example:
        >>> threshold, flips = input_thresholds([nn.Hardtanh(-1, 1)], 2, is_image=False)
        >>> threshold.tolist(), flips.tolist()
        ([0.0, 0.0], [0])
    """
    shape = (1, channels, 1, 1) if is_image else (1, channels)

    def bits(x: Float[Tensor, " channels"]) -> Bool[Tensor, " channels"]:
        return (_through(modules, x.view(shape)) >= 0).flatten()

    largest = torch.finfo(torch.float32).max
    low = _order(torch.full((channels,), -largest, dtype=torch.float32))
    high = _order(torch.full((channels,), largest, dtype=torch.float32))
    first, last = bits(_float(low)), bits(_float(high))
    while (high - low > 1).any():
        middle = (low + high) // 2
        is_last = bits(_float(middle)) == last
        high, low = torch.where(is_last, middle, high), torch.where(is_last, low, middle)
    found = _float(high)
    found = torch.where(found == 0, 0.0, found)  # -0 and +0 are one threshold
    always = torch.where(first, -torch.inf, torch.nan)  # NaN is never reached
    thresholds = torch.where(first == last, always, found)
    return thresholds, bits_to_words(first & ~last)


def _order(x: Float[Tensor, " channels"]) -> Int64[Tensor, " channels"]:
    """Whole numbers in the order of the floats."""
    raw = x.view(torch.int32).long()
    return torch.where(raw < 0, -(raw & 0x7FFFFFFF), raw)


def _float(order: Int64[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    size = order.abs().int().view(torch.float32)
    return torch.where(order < 0, -size, size)
