"""RBNN: the training-aware estimator of rotated binary networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rectified.binary.estimators.surrogate import Number, Surrogate, Values, check_bounds


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
        check_bounds(
            t_min=(t_min, t_min > 0, "above 0"), t_max=(t_max, t_max >= t_min, "at least t_min")
        )
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
