"""The family of estimators: functions near the sign whose slopes stand in for its derivative.

| name | f(x) | f'(x) |
| --- | --- | --- |
| `STE` | x | 1 |
| `ClippedSTE` | clip(x, -c, c) | 1 for abs(x) <= c |
| `ApproxSign` | 2x - x abs(x), then the sign | max(0, 2 - 2 abs(x)) |
| `SwishSign` | 2 s(bx) (1 + bx (1 - s(bx))) - 1 | b (2 - bx tanh(bx/2)) / (1 + cosh(bx)) |
| `DSQ` | tanh(kx) / tanh(k), then the sign | k (1 - tanh(kx)^2) / tanh(k) for abs(x) <= 1 |
| `EDE` | k tanh(tx) | k t (1 - tanh(tx)^2) |
| `RBNN` | k (sqrt2 t x - t^2 x abs(x) / 2), then k sign | max(0, k (sqrt2 t - t^2 abs(x))) |
| `FDA` | 4/pi sum_i sin((2i+1) w x) / (2i+1) | 4w/pi sum_i cos((2i+1) w x) |
| `ReSTE` | sign(x) abs(x)^(1/o) | see the class: a plateau near 0, a cut far from it |
| `GainSTE` | ReSTE's plateau everywhere | the control that has ReSTE's gain and not its shape |

s is the logistic function. Each is odd, and slopes are even. What changes over training (o, t, n)
is a buffer without axes: it is saved with the network, moves without a host having to wait, and a
compiled network need not be compiled again. `schedule(progress)` sets it, with progress 0 before
the first and 1 at the last update; `rectified.binary.anneal` calls it after each.

Two facts worth knowing (both follow from the formulas). For unit-variance inputs every f near the
sign has a mean slope of about E|z| = 0.80 (Stein's identity), so on normalised activations
estimators differ in the spread of their slopes only. On weights, which are small, a sharper f
multiplies the gradient: much of what it does is a larger step. `normalize_gain` takes that away.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.binary.sign import binarize
from rectified.errors import UserError

Values = Float[Tensor, "..."]
Number = float | int  # run-time checks of types know no numeric tower


class Surrogate(nn.Module):
    """What the estimators share: state in buffers, and a slope that can be normalised.

    A call binarizes: `ReSTE()(x)` is `binarize(x, ReSTE())`. Assigning a number to a part of the
    state fills it: `estimator.o = 2.0`.

    Args:
        normalize_gain: divide the slopes of each tensor by their mean, so that the estimator only
            distributes the gradient and does not enlarge it.
        state: buffers without axes, by name.
    """

    def __init__(self, *, normalize_gain: bool = False, **state: Number) -> None:
        super().__init__()
        self.normalize_gain = normalize_gain
        for name, value in state.items():
            self.register_buffer(name, torch.tensor(float(value)))

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, int | float) and name in self.__dict__.get("_buffers", ()):
            self.get_buffer(name).fill_(value)
        else:
            super().__setattr__(name, value)

    def state(self, name: str, x: Values) -> Float[Tensor, ""]:
        """A part of the state, in the precision of `x`."""
        return self.get_buffer(name).to(x.dtype)

    def schedule(self, progress: Number) -> None:
        """Set the state for `progress` in [0, 1] of the training; here there is none to set."""

    def value(self, x: Values, /) -> Values:
        """f(x)."""
        raise NotImplementedError

    def derivative(self, x: Values, /) -> Values:
        """df/dx, before any normalisation."""
        raise NotImplementedError

    def slope(self, x: Values, /) -> Values:
        """What the backward pass multiplies by."""
        slope = self.derivative(x)
        # all slopes zero: nothing to normalise, and no gradient either
        return slope / _positive(slope.mean()) if self.normalize_gain else slope

    def forward(self, x: Values) -> Values:
        return binarize(x, self)

    def extra_repr(self) -> str:
        parts = [f"{name}={value.item():.4g}" for name, value in self.named_buffers()]
        return ", ".join([*parts, *(["normalize_gain=True"] if self.normalize_gain else [])])


def _positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.ones_like(x))


class STE(Surrogate):
    """The straight-through estimator: the gradient passes as it is.

    References:
        Y. Bengio, N. Leonard, A. Courville, "Estimating or Propagating Gradients Through Stochastic
        Neurons for Conditional Computation", 2013, arXiv:1308.3432.

    Example:
        >>> STE().slope(torch.tensor([-9.0, 0.0])).tolist()
        [1.0, 1.0]
    """

    def __init__(self, *, normalize_gain: bool = False) -> None:
        super().__init__(normalize_gain=normalize_gain)

    def value(self, x: Values, /) -> Values:
        return x

    def derivative(self, x: Values, /) -> Values:
        return torch.ones_like(x)


class ClippedSTE(Surrogate):
    """The gradient passes where abs(x) <= c; what papers usually mean by STE, with c = 1.

    Args:
        c: where the gradient ends, above 0.

    Raises:
        UserError: if `c` is not above 0.

    References:
        I. Hubara et al., "Binarized Neural Networks", 2016, arXiv:1602.02830, section 2.3.

    Example:
        >>> ClippedSTE().slope(torch.tensor([-1.1, -1.0, 0.5])).tolist()
        [0.0, 1.0, 1.0]
    """

    def __init__(self, c: Number = 1.0, *, normalize_gain: bool = False) -> None:
        _check(c=(c, c > 0, "above 0"))
        super().__init__(normalize_gain=normalize_gain)
        self.c = c

    def value(self, x: Values, /) -> Values:
        return x.clamp(-self.c, self.c)

    def derivative(self, x: Values, /) -> Values:
        return (x.abs() <= self.c).to(x.dtype)


class ApproxSign(Surrogate):
    """A piecewise parabola between -1 and 1 (Bi-Real net).

    References:
        Z. Liu et al., "Bi-Real Net: Enhancing the Performance of 1-bit CNNs With Improved
        Representational Capability and Advanced Training Algorithm", 2018, arXiv:1808.00278,
        section 3.3.

    Example:
        >>> ApproxSign().slope(torch.tensor([-2.0, -0.25, 0.0])).tolist()
        [0.0, 1.5, 2.0]
    """

    def __init__(self, *, normalize_gain: bool = False) -> None:
        super().__init__(normalize_gain=normalize_gain)

    def value(self, x: Values, /) -> Values:
        inside = x.clamp(-1, 1)
        return 2 * inside - inside * inside.abs()

    def derivative(self, x: Values, /) -> Values:
        return 2 - 2 * x.abs().clamp(max=1)


class SwishSign(Surrogate):
    """The derivative of a swish, scaled (BNN+); it overshoots the sign, so its slope changes sign.

    Args:
        b: steepness, above 0.

    Raises:
        UserError: if `b` is not above 0.

    References:
        S. Darabi, M. Belbahri, M. Courbariaux, V. Partovi Nia, "BNN+: Improved Binary Network
        Training", 2018, arXiv:1812.11800, equation 4.

    Example:
        >>> SwishSign().slope(torch.tensor([0.0])).tolist()
        [5.0]
    """

    def __init__(self, b: Number = 5.0, *, normalize_gain: bool = False) -> None:
        _check(b=(b, b > 0, "above 0"))
        super().__init__(normalize_gain=normalize_gain)
        self.b = b

    def _scaled(self, x: Values) -> Values:
        # beyond 80 both formulas have their limits, and infinity would give inf - inf
        return (self.b * x.clamp(-80 / self.b, 80 / self.b)).clamp(-80, 80)

    def value(self, x: Values, /) -> Values:
        y = self._scaled(x)
        s = y.sigmoid()
        return 2 * s * (1 + y * (1 - s)) - 1

    def derivative(self, x: Values, /) -> Values:
        y = self._scaled(x)
        return self.b * (2 - y * torch.tanh(y / 2)) / (1 + torch.cosh(y))


class DSQ(Surrogate):
    """A hyperbolic tangent that reaches the sign at -1 and 1 (differentiable soft quantisation).

    Args:
        alpha: how far from the sign, in (0, 1): 1 - tanh(k), with k = ln(2 / alpha - 1) / 2.

    Raises:
        UserError: if `alpha` is not in (0, 1).

    References:
        R. Gong et al., "Differentiable Soft Quantization: Bridging Full-Precision and Low-Bit
        Neural Networks", 2019, arXiv:1908.05033, equations 4-7; alpha = 0.4 as in MQBench.

    Example:
        >>> DSQ().value(torch.tensor([-3.0, 1.0])).tolist()
        [-1.0, 1.0]
    """

    def __init__(self, alpha: Number = 0.4, *, normalize_gain: bool = False) -> None:
        _check(alpha=(alpha, 0 < alpha < 1, "in (0, 1)"))
        super().__init__(normalize_gain=normalize_gain)
        self.alpha = alpha
        self.k = 0.5 * math.log(2 / alpha - 1)

    def value(self, x: Values, /) -> Values:
        return (torch.tanh(self.k * x.clamp(-1, 1)) / math.tanh(self.k)).clamp(-1, 1)

    def derivative(self, x: Values, /) -> Values:
        slope = self.k * (1 - torch.tanh(self.k * x) ** 2) / math.tanh(self.k)
        return slope * (x.abs() <= 1)


class EDE(Surrogate):
    """The error decay estimator of IR-Net: a hyperbolic tangent that sharpens over training.

    t grows from `t_min` to `t_max` geometrically and k = max(1/t, 1), so that training begins with
    nearly the identity. IR-Net also standardises the weights; that is the layers' `standardize`.

    Args:
        t_min: at the start, above 0. 0.1 is the paper's; its code has 1e-3 for ResNet-20 1W/1A.
        t_max: at the end, at least `t_min`.

    Raises:
        UserError: if these bounds are broken.

    References:
        H. Qin et al., "Forward and Backward Information Retention for Accurate Binary Neural
        Networks", 2020, arXiv:1909.10788, equations 8-10.

    Example:
        >>> estimator = EDE(); estimator.schedule(1.0)
        >>> round(estimator.slope(torch.zeros(1)).item(), 4)
        10.0
    """

    def __init__(
        self, t_min: Number = 0.1, t_max: Number = 10.0, *, normalize_gain: bool = False
    ) -> None:
        _check(t_min=(t_min, t_min > 0, "above 0"), t_max=(t_max, t_max >= t_min, "at least t_min"))
        super().__init__(normalize_gain=normalize_gain, t=t_min)
        self.t_min, self.t_max = t_min, t_max

    def schedule(self, progress: Number) -> None:
        self.t = self.t_min * (self.t_max / self.t_min) ** progress

    def _shape(self, x: Values) -> tuple[Tensor, Tensor]:
        t = self.state("t", x)
        return t, (1 / t).clamp(min=1)

    def value(self, x: Values, /) -> Values:
        t, k = self._shape(x)
        return k * torch.tanh(t * x)

    def derivative(self, x: Values, /) -> Values:
        t, k = self._shape(x)
        return k * t * (1 - torch.tanh(t * x) ** 2)


class RBNN(Surrogate):
    """The training-aware estimator of rotated binary networks: a parabola that sharpens.

    Args:
        t_min: t at the start, above 0.
        t_max: t at the end, at least `t_min`.
        activations: as the authors use it for activations: k = 1 and t at least 1.

    Raises:
        UserError: if these bounds are broken.

    References:
        M. Lin et al., "Rotated Binary Neural Network", 2020, arXiv:2009.13055, equations 20-22.

    Example:
        >>> estimator = RBNN(); estimator.schedule(1.0)
        >>> round(estimator.slope(torch.zeros(1)).item(), 3)
        14.142
    """

    def __init__(
        self,
        t_min: Number = 1e-2,
        t_max: Number = 10.0,
        *,
        activations: bool = False,
        normalize_gain: bool = False,
    ) -> None:
        _check(t_min=(t_min, t_min > 0, "above 0"), t_max=(t_max, t_max >= t_min, "at least t_min"))
        super().__init__(normalize_gain=normalize_gain, t=t_min)
        self.t_min, self.t_max, self.activations = t_min, t_max, activations

    def schedule(self, progress: Number) -> None:
        self.t = self.t_min * (self.t_max / self.t_min) ** progress

    def _shape(self, x: Values) -> tuple[Tensor, Tensor]:
        t = self.state("t", x)
        if self.activations:
            return t.clamp(min=1), torch.ones_like(t)
        return t, (1 / t).clamp(min=1)

    def value(self, x: Values, /) -> Values:
        t, k = self._shape(x)
        y = (t * x).clamp(-math.sqrt(2), math.sqrt(2))
        return k * (math.sqrt(2) * y - y * y.abs() / 2)

    def derivative(self, x: Values, /) -> Values:
        t, k = self._shape(x)
        return k * t * (math.sqrt(2) - (t * x).abs().clamp(max=math.sqrt(2)))


class FDA(Surrogate):
    """The first waves of the sign's Fourier series (frequency domain approximation).

    The noise-adaptation module of the paper is not part of this. The paper does not print its
    frequency; with pi/3 the series is near the sign for abs(x) < 3.

    Args:
        n_start: highest index of a wave at the start, at least 0.
        n_end: at the end, at least `n_start`.
        omega: frequency of the first wave, above 0.

    Raises:
        UserError: if these bounds are broken.

    References:
        Y. Xu et al., "Learning Frequency Domain Approximation for Binary Neural Networks", 2021,
        arXiv:2103.00841, equations 5-7.

    Example:
        >>> round(FDA().slope(torch.zeros(1)).item(), 3)  # 4 w / pi * 10 waves
        13.333
    """

    def __init__(
        self,
        n_start: int = 9,
        n_end: int = 18,
        omega: Number = math.pi / 3,
        *,
        normalize_gain: bool = False,
    ) -> None:
        _check(
            n_start=(n_start, n_start >= 0, "at least 0"),
            n_end=(n_end, n_end >= n_start, "at least n_start"),
            omega=(omega, omega > 0, "above 0"),
        )
        super().__init__(normalize_gain=normalize_gain, n=n_start)
        self.n_start, self.n_end, self.omega = n_start, n_end, omega

    def schedule(self, progress: Number) -> None:
        self.n = round(self.n_start + progress * (self.n_end - self.n_start))

    def _near(self, x: Values) -> Values:
        # of infinity there is no sine, and in half precision 37 x soon is infinite
        return x.clamp(-1000, 1000)

    def value(self, x: Values, /) -> Values:
        n, total, x = self.state("n", x), torch.zeros_like(x), self._near(x)
        for i in range(self.n_end + 1):  # all of them: which count is decided on the device
            wave = torch.sin((2 * i + 1) * self.omega * x) / (2 * i + 1)
            total = torch.where(n >= i, total + wave, total)
        return 4 / math.pi * total

    def derivative(self, x: Values, /) -> Values:
        n, total, x = self.state("n", x), torch.zeros_like(x), self._near(x)
        for i in range(self.n_end + 1):
            total = torch.where(n >= i, total + torch.cos((2 * i + 1) * self.omega * x), total)
        return 4 * self.omega / math.pi * total


class ReSTE(Surrogate):
    """The rectified straight-through estimator: a power between the identity and the sign.

        f(x)  = sign(x) |x|^(1/o)
        f'(x) = m^(1/o - 1)            |x| <= m        (the secant from 0 to m)
              = |x|^(1/o - 1) / o      m < |x| <= t
              = 0                      t < |x|

    o = 1 is the straight-through estimator cut at t, o to infinity the sign. It goes from 1 to
    `o_end` as o = 1 + (o_end - 1) (1 - cos(pi/2 progress)): slowly at first. At m the slope falls
    by the factor o. With `relative`, m and t count in units of each tensor's standard deviation,
    since m = 0.1 means something else for weights of spread 0.06 than for 0.12.

    Args:
        o_end: o at the end of training, at least 1.
        m: half width of the plateau, above 0.
        t: where the gradient ends, above `m`.
        o: where to stand now, at least 1.
        relative: whether m and t are in units of the tensor's standard deviation.

    Raises:
        UserError: if one of these bounds is broken.

    References:
        X.-M. Wu, D. Zheng, Z. Liu, W.-S. Zheng, "Estimator Meets Equilibrium Perspective: A
        Rectified Straight Through Estimator for Binary Neural Networks Training", 2023,
        arXiv:2308.06689; m, t, o_end and the schedule as in the authors' code.

    Example:
        >>> x = torch.tensor([2, 1.5, 1, 0.5, 0.1001, 0.1, 0.05, 0])
        >>> [round(slope, 3) for slope in ReSTE(o=3.0).slope(x).tolist()]
        [0.0, 0.254, 0.333, 0.529, 1.546, 4.642, 4.642, 4.642]
    """

    def __init__(
        self,
        o_end: Number = 3.0,
        m: Number = 0.1,
        t: Number = 1.5,
        *,
        o: Number = 1.0,
        relative: bool = False,
        normalize_gain: bool = False,
    ) -> None:
        _check_powers(o_end, m, t, o)
        super().__init__(normalize_gain=normalize_gain, o=o)
        self.o_end, self.m, self.t, self.relative = o_end, m, t, relative

    def schedule(self, progress: Number) -> None:
        self.o = _power(self.o_end, progress)

    def value(self, x: Values, /) -> Values:
        return torch.copysign(x.abs() ** (1 / self.state("o", x)), x)

    def derivative(self, x: Values, /) -> Values:
        o, size = self.state("o", x), x.abs()
        # of a constant tensor the deviation is 0
        unit = _positive(x.std(correction=0)) if self.relative else torch.ones_like(o)
        m, t = self.m * unit, self.t * unit
        tangent = (size.clamp(m, t) ** (1 / o - 1)).div_(o)
        # at m the secant is o times the tangent; factors, since torch.where is slow on a CPU
        steepened = (size <= m).to(x.dtype).mul_(o - 1).add_(1)
        return tangent.mul_(steepened).mul_(size <= t)


class GainSTE(Surrogate):
    """The control for ReSTE: its gain without its shape, f'(x) = m^(1/o - 1) for abs(x) <= t.

    Most weights lie on ReSTE's plateau, where all it does is to enlarge the gradient. What this
    estimator also reaches is an effect of the step's size.

    Args:
        o_end: as ReSTE's.
        m: as ReSTE's.
        t: as ReSTE's.
        o: where to stand now, at least 1.

    Raises:
        UserError: if one of ReSTE's bounds is broken.

    Example:
        >>> slopes = GainSTE(o=3.0).slope(torch.tensor([0.0, 1.0, 2.0]))
        >>> [round(slope, 3) for slope in slopes.tolist()]
        [4.642, 4.642, 0.0]
    """

    def __init__(
        self,
        o_end: Number = 3.0,
        m: Number = 0.1,
        t: Number = 1.5,
        *,
        o: Number = 1.0,
        normalize_gain: bool = False,
    ) -> None:
        _check_powers(o_end, m, t, o)
        super().__init__(normalize_gain=normalize_gain, o=o)
        self.o_end, self.m, self.t = o_end, m, t

    def schedule(self, progress: Number) -> None:
        self.o = _power(self.o_end, progress)

    def value(self, x: Values, /) -> Values:
        return self.m ** (1 / self.state("o", x) - 1) * x.clamp(-self.t, self.t)

    def derivative(self, x: Values, /) -> Values:
        gain = self.m ** (1 / self.state("o", x) - 1)
        return gain * (x.abs() <= self.t)


def _power(o_end: Number, progress: Number) -> float:
    return 1 + (o_end - 1) * (1 - math.cos(progress * math.pi / 2))


def _check_powers(o_end: Number, m: Number, t: Number, o: Number) -> None:
    _check(
        o_end=(o_end, 1 <= o_end < math.inf, "at least 1"),
        m=(m, m > 0, "above 0"),
        t=(t, t > m, "above m"),
        o=(o, 1 <= o < math.inf, "at least 1"),
    )


def _check(**rules: tuple[Number, bool, str]) -> None:
    for name, (value, holds, rule) in rules.items():
        if not holds:
            raise UserError(f"{name} must be {rule}, got {value}")
