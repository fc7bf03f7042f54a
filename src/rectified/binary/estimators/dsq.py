"""DSQ: differentiable soft quantisation."""

from __future__ import annotations

import math

import torch

from rectified.binary.estimators.surrogate import Number, Surrogate, Values, check_bounds


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
        check_bounds(alpha=(alpha, 0 < alpha < 1, "in (0, 1)"))
        super().__init__(normalize_gain=normalize_gain)
        self.alpha = alpha
        self.k = 0.5 * math.log(2 / alpha - 1)

    def value(self, x: Values, /) -> Values:
        return (torch.tanh(self.k * x.clamp(-1, 1)) / math.tanh(self.k)).clamp(-1, 1)

    def derivative(self, x: Values, /) -> Values:
        slope = self.k * (1 - torch.tanh(self.k * x) ** 2) / math.tanh(self.k)
        return slope * (x.abs() <= 1)
