"""SwishSign: the derivative of a swish."""

from __future__ import annotations

import torch

from rectified.binary.estimators.surrogate import Number, Surrogate, Values, check_bounds


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
        check_bounds(b=(b, b > 0, "above 0"))
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
