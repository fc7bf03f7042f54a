"""EDE: the error decay estimator of IR-Net."""

from __future__ import annotations

import torch
from torch import Tensor

from rectified.binary.estimators.surrogate import Number, Surrogate, Values, check_bounds


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
        check_bounds(
            t_min=(t_min, t_min > 0, "above 0"), t_max=(t_max, t_max >= t_min, "at least t_min")
        )
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
