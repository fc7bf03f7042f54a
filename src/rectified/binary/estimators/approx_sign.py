"""ApproxSign: a piecewise parabola."""

from __future__ import annotations

from rectified.binary.estimators.surrogate import Surrogate, Values


class ApproxSign(Surrogate):
    """A piecewise parabola between -1 and 1 (Bi-Real net).

    References:
        Z. Liu et al., "Bi-Real Net: Enhancing the Performance of 1-bit CNNs With Improved
        Representational Capability and Advanced Training Algorithm", 2018, arXiv:1808.00278,
        section 3.3.

    Example:
        >>> import torch
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
