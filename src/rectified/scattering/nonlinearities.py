"""Pointwise non-linearities M with M(0) = 0 and their sharp Lipschitz constants L.

    |M(z) - M(w)| <= L |z - w|        for all complex z, w

All but the moduli act on the real and the imaginary part by themselves, and so have on the complex
plane the constant that they have on the line. The published table is twice as large for ReLU, tanh
and the sigmoid; the smallest constants are used here, since every bound is proportional to them.

References:
    Wiatowski and Bölcskei, 2018, arXiv 1512.06293, table of non-linearities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Num
from torch import Tensor

from rectified.errors import UserError

Pointwise = Callable[[Tensor], Tensor]
_POINTS = 50_000  # on which the constant of a user's function is estimated, in every range
_RANGES = (1.0, 10.0, 100.0, 1000.0)  # of the points
_HALVINGS = 8  # of the steepest interval, twice
_STEADY = 1.5  # factor by which the estimate of a Lipschitz function may grow at the end


@dataclass(frozen=True)
class Nonlinearity:
    """A pointwise map that keeps 0, with its constant.

    Attributes:
        name: for tables.
        function: on a real or complex tensor.
        lipschitz: the constant L.
        is_exact: false if the constant was estimated, and so is only a lower bound.

    Example:
        >>> relu(torch.tensor([3 - 2j])).tolist(), relu.lipschitz
        ([(3+0j)], 1.0)
    """

    name: str
    function: Pointwise
    lipschitz: float
    is_exact: bool = True

    def __call__(self, maps: Num[Tensor, "..."]) -> Num[Tensor, "..."]:
        """Apply it to every value."""
        return self.function(maps)


def _on_parts(function: Pointwise, maps: Tensor) -> Tensor:
    if not maps.is_complex():
        return function(maps)
    return torch.view_as_complex(function(torch.view_as_real(maps)))


def _modulus(maps: Tensor) -> Tensor:
    if not maps.is_complex() or maps.requires_grad:
        return maps.abs()  # its gradient is 0 at 0, that of the root below is not
    # three times faster on a CPU than abs, which guards against overflow of the squares
    squares = torch.view_as_real(maps).square()
    return (squares[..., 0] + squares[..., 1]).sqrt_()


def _log_modulus(maps: Tensor) -> Tensor:
    return _modulus(maps).log1p()


def _parts(name: str, function: Pointwise, lipschitz: float) -> Nonlinearity:
    return Nonlinearity(name, partial(_on_parts, function), lipschitz)


def _sigmoid(maps: Tensor) -> Tensor:
    return maps.sigmoid() - 0.5


def _softplus(maps: Tensor) -> Tensor:
    return F.softplus(maps) - F.softplus(torch.zeros_like(maps))


identity = Nonlinearity("identity", torch.Tensor.clone, 1.0)
modulus = Nonlinearity("modulus", _modulus, 1.0)
log_modulus = Nonlinearity("log_modulus", _log_modulus, 1.0)
relu = _parts("relu", F.relu, 1.0)
tanh = _parts("tanh", torch.tanh, 1.0)
sigmoid = _parts("sigmoid", _sigmoid, 0.25)
softplus = _parts("softplus", _softplus, 1.0)
sine = _parts("sine", torch.sin, 1.0)
# the largest slope, found by maximising it in high precision and rounded up
gelu = _parts("gelu", F.gelu, 1.1289042)
silu = _parts("silu", F.silu, 1.0998394)
mish = _parts("mish", F.mish, 1.0884900)

NONLINEARITIES = {
    one.name: one
    for one in (
        identity, modulus, log_modulus, relu, tanh, sigmoid, softplus, sine, gelu, silu, mish
    )
}  # fmt: skip


def leaky_relu(slope: float = 0.01) -> Nonlinearity:
    """max(x, 0) + slope * min(x, 0); L = max(1, |slope|).

    Example:
        >>> leaky_relu(2.0).lipschitz
        2.0
    """
    function = partial(F.leaky_relu, negative_slope=slope)
    return _parts(f"leaky_relu({slope:g})", function, max(1.0, abs(slope)))


def elu(alpha: float = 1.0) -> Nonlinearity:
    """x above 0, alpha (e^x - 1) below; L = max(1, |alpha|).

    Example:
        >>> elu(0.5).lipschitz
        1.0
    """
    return _parts(f"elu({alpha:g})", partial(F.elu, alpha=alpha), max(1.0, abs(alpha)))


def soft_threshold(threshold: float) -> Nonlinearity:
    """sign(x) max(|x| - threshold, 0); L = 1.

    Args:
        threshold: at least 0.

    Raises:
        UserError: if it is negative.

    Example:
        >>> soft_threshold(1.0)(torch.tensor([-3.0, 0.5, 2.0]))
        tensor([-2.,  0.,  1.])
    """
    if threshold < 0:
        raise UserError(f"threshold must be at least 0, got {threshold}")
    function = partial(F.softshrink, lambd=threshold)
    return _parts(f"soft_threshold({threshold:g})", function, 1.0)


def custom_nonlinearity(
    name: str, function: Pointwise, *, lipschitz: float | None = None
) -> Nonlinearity:
    """A function of yours.

    Args:
        name: for tables.
        function: pointwise, on real tensors; it is applied to real and imaginary parts.
        lipschitz: its constant if you know it; else it is estimated from below, on pairs near and
            far, and every bound that follows is labelled as such.

    Raises:
        UserError: if it moves 0, gives NaN, or its quotients grow without an end in sight.

    Example:
        >>> arctan = custom_nonlinearity("arctan", torch.atan)
        >>> round(arctan.lipschitz, 3), arctan.is_exact
        (1.0, False)
    """
    at_zero = function(torch.zeros(1, dtype=torch.float64))
    if at_zero.abs().item() > 1e-12:
        raise UserError(f"{name} must keep 0 at 0, got {at_zero.item():g}: subtract its value at 0")
    if lipschitz is not None:
        return _parts(name, function, lipschitz)
    slopes = [_steepest(name, function, reach) for reach in _RANGES]
    if slopes[-1] > _STEADY * slopes[-2]:
        raise UserError(
            f"{name} must be Lipschitz, got slopes that grow with x, {slopes[-2]:.3g} then "
            f"{slopes[-1]:.3g}; if it is, give its constant"
        )
    return Nonlinearity(name, partial(_on_parts, function), max(slopes), is_exact=False)


def _steepest(name: str, function: Pointwise, reach: float) -> float:
    """The largest slope between -reach and reach, by halving the interval of the largest slope.

    One of the halves of an interval is always as steep as the whole; where that does not settle,
    the function jumps.
    """
    points = torch.linspace(-reach, reach, _POINTS, dtype=torch.float64)
    values = function(points)
    if not values.isfinite().all():
        raise UserError(f"{name} must be finite, got NaN or infinity for |x| <= {reach:g}")
    found = []
    for halving in range(2 * _HALVINGS + 1):
        slopes = (values.diff() / points.diff()).abs()
        steepest = int(slopes.argmax())
        if halving % _HALVINGS == 0:
            found.append(float(slopes[steepest]))
        low, high = float(points[steepest]), float(points[steepest + 1])
        points = torch.tensor([low, (low + high) / 2, high], dtype=torch.float64)
        values = function(points)
    if found[2] > _STEADY * found[1]:
        raise UserError(f"{name} must be Lipschitz, got a jump near x = {points[1].item():.3g}")
    return found[2]
