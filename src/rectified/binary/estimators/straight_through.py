"""Straight-through estimators: the gradient passes the sign as it is."""

from __future__ import annotations

import torch

from rectified.binary.estimators.surrogate import Number, Surrogate, Values, check_bounds


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
        check_bounds(c=(c, c > 0, "above 0"))
        super().__init__(normalize_gain=normalize_gain)
        self.c = c

    def value(self, x: Values, /) -> Values:
        return x.clamp(-self.c, self.c)

    def derivative(self, x: Values, /) -> Values:
        return (x.abs() <= self.c).to(x.dtype)
