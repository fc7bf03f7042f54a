"""Problems whose flow is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rectified.flow.paths import AffinePath
from rectified.flow.predictions import Endpoints, Prediction


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class GaussianFlow:
    """From N(0, I) to N(mean, deviation^2 I): everything is a linear function of x.

    With x = a x1 + b x0 and n = a^2 d^2 + b^2,
    E[x1 | x] = m + a d^2 / n (x - a m) and E[x0 | x] = b / n (x - a m).
    """

    path: AffinePath
    mean: float = 1.5
    deviation: float = 0.6

    def endpoints(self, x: Tensor, t: Tensor) -> Endpoints:
        """The conditional means."""
        c = self.path.coefficients(t.to(x.dtype)).like(x)
        centred = x - c.a * self.mean
        variance = c.a**2 * self.deviation**2 + c.b**2
        x1 = self.mean + c.a * self.deviation**2 / variance * centred
        return Endpoints(c.b / variance * centred, x1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity a' E[x1 | x] + b' E[x0 | x]."""
        c = self.path.coefficients(t.to(x.dtype)).like(x)
        ends = self.endpoints(x, t)
        return c.da * ends.x1 + c.db * ends.x0

    def at(self, start: Tensor, t: Tensor, begin: Tensor) -> Tensor:
        """The state at t of the trajectory that is at `start` at time `begin`, exactly.

        A Gaussian flow keeps how many deviations a point is from the mean.
        """
        now, then = (self.path.coefficients(s.to(start.dtype)) for s in (begin, t))
        spread = [(c.a**2 * self.deviation**2 + c.b**2).sqrt() for c in (now, then)]
        return then.a * self.mean + spread[1] / spread[0] * (start - now.a * self.mean)

    def network(self, predicts: Prediction) -> Callable[[Tensor, Tensor], Tensor]:
        """A perfect network for one prediction: (x, t) to what the conditional means imply."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return predicts.of(self.endpoints(x, t), t, self.path)

        return predict


def named(value: object) -> str:
    """A test's name for a function or a value: `str` of a function is another in every process."""
    return getattr(value, "__name__", None) or str(value)
