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
_PAIRS = 50_000  # on which the constant of a user's function is estimated, at every distance
_RANGES = (1.0, 10.0, 100.0)  # of the points
_DISTANCES = (1.0, 1e-2, 1e-4, 1e-6)  # of the pairs, against the range
_STEADY = 3.0  # factor by which the estimate of a Lipschitz function may differ between those


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
        raise UserError(
            f"{name} must keep 0 at 0, got {at_zero.item():g}: subtract its value at 0"
        )
    if lipschitz is not None:
        return _parts(name, function, lipschitz)
    quotients = torch.tensor(
        [[_quotient(name, function, r, r * d) for d in _DISTANCES] for r in _RANGES]
    )
    by_range, by_distance = quotients.amax(1), quotients.amax(0)
    if max(by_range[-1] / by_range[0], by_distance[-1] / by_distance[0]) > _STEADY:
        raise UserError(
            f"{name} must be Lipschitz, got quotients that grow from {quotients[0, 0]:.3g} to "
            f"{quotients.max():.3g}; if it is, give its constant"
        )
    found = _parts(name, function, float(quotients.max()))
    return Nonlinearity(found.name, found.function, found.lipschitz, is_exact=False)


def _quotient(name: str, function: Pointwise, reach: float, distance: float) -> float:
    """The largest |M(x) - M(y)| / |x - y| over pairs at one distance."""
    x = torch.linspace(-reach, reach, _PAIRS, dtype=torch.float64)
    moved = function(x + distance) - function(x)
    if not moved.isfinite().all():
        raise UserError(f"{name} must be finite, got NaN or infinity for |x| <= {reach:g}")
    return float(moved.abs().max() / distance)
