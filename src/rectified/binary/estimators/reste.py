"""ReSTE, a power between the identity and the sign, and the control that has its gain alone."""

from __future__ import annotations

import math

import torch

from rectified.binary.estimators.surrogate import Number, Surrogate, Values, check_bounds, positive


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
        unit = positive(x.std(correction=0)) if self.relative else torch.ones_like(o)
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
    check_bounds(
        o_end=(o_end, 1 <= o_end < math.inf, "at least 1"),
        m=(m, m > 0, "above 0"),
        t=(t, t > m, "above m"),
        o=(o, 1 <= o < math.inf, "at least 1"),
    )
