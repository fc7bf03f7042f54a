"""Predictions of a network at a point on a path, and the exact conversions between them.

Of x = a x1 + b x0 a network predicts one thing; with x itself that gives both end points, and the
end points give everything else. So each prediction is two formulas, to the end points and from
them, and any conversion is one after the other:

    name          what it is                 x1                      x0
    velocity      a' x1 + b' x0              (b v - b' x) / W        (a' x - a v) / W
    v_prediction  a x0 - b x1                (a x - b v) / n         (b x + a v) / n,  n = a^2 + b^2
    noise         x0                         (x - b x0) / a          x0
    target        x1                         x1                      (x - a x1) / b
    score         -x0 / b                    (x + b^2 s) / a         -b s
    edm           F, preconditioned          s^2 a x/q + s b F/sqrt(q)   b x/q - s a F/sqrt(q)
                                             q = b^2 + s^2 a^2, s = 0.5: the data's deviation

`velocity` is the flow's; `v_prediction` is Salimans and Ho's (arXiv 2202.00512), bounded on every
path: the safe choice on curved ones. On `vp_cosine`, velocity = -(pi/2) v_prediction. The score is
that of x_t when x0 is standard normal and independent of x1. Divisions by a(0) = 0 or b(1) = 0 are
by `TINY` instead: finite, though no prediction of noise says anything of x1 there.

References:
    Karras et al., 2022, arXiv 2206.00364, eq. 7 (edm); Lee, Lin, Fanti, Improving the training of
    rectified flows, 2024, arXiv 2405.20320, prop. 1; Wang et al., Rectified diffusion, 2024,
    arXiv 2410.07303.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from rectified.flow.paths import TINY, AffinePath, Coefficients, Points, Times


class Endpoints(NamedTuple):
    """Source and target point, as far as a network can tell."""

    x0: Tensor
    x1: Tensor


@dataclass(frozen=True)
class Prediction:
    """One thing that a network may predict.

    Attributes:
        name: the field's word.
        to_endpoints: (prediction, x, coefficients) -> end points.
        from_endpoints: (end points, coefficients) -> prediction.
    """

    name: str
    to_endpoints: Callable[[Tensor, Tensor, Coefficients], Endpoints]
    from_endpoints: Callable[[Endpoints, Coefficients], Tensor]

    def endpoints(self, output: Points, x: Points, t: Times, path: AffinePath) -> Endpoints:
        """Both end points, from a prediction at x and t.

        Args:
            output: what the network said, shaped as x.
            x: points on the path (batch, ...).
            t: in [0, 1], one per point or one for all.
            path: whose coefficients count.
        """
        return self.to_endpoints(output, x, path.coefficients(t).like(x))

    def of(self, ends: Endpoints, t: Times, path: AffinePath) -> Points:
        """The prediction that a perfect network would make of these end points."""
        return self.from_endpoints(ends, path.coefficients(t).like(ends.x1))


def convert(
    output: Points,
    x: Points,
    t: Times,
    path: AffinePath,
    *,
    source: Prediction,
    target: Prediction,
) -> Points:
    """Turn one prediction at x and t into another, exactly.

    Example:
        >>> import torch
        >>> from rectified.flow.paths import straight
        >>> x0, x1, t = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25])
        >>> x, v = straight(x0, x1, t)
        >>> convert(v, x, t, straight, source=velocity, target=target)
        tensor([[1., 1.]])
    """
    return target.of(source.endpoints(output, x, t, path), t, path)


def _from_velocity(v: Tensor, x: Tensor, c: Coefficients) -> Endpoints:
    return Endpoints((c.da * x - c.a * v) / c.wronskian, (c.b * v - c.db * x) / c.wronskian)


def _from_v_prediction(v: Tensor, x: Tensor, c: Coefficients) -> Endpoints:
    norm = c.a**2 + c.b**2
    return Endpoints((c.b * x + c.a * v) / norm, (c.a * x - c.b * v) / norm)


def _from_noise(x0: Tensor, x: Tensor, c: Coefficients) -> Endpoints:
    return Endpoints(x0, (x - c.b * x0) / c.a.clamp(min=TINY))


def _from_target(x1: Tensor, x: Tensor, c: Coefficients) -> Endpoints:
    return Endpoints((x - c.a * x1) / c.b.clamp(min=TINY), x1)


def _from_score(score: Tensor, x: Tensor, c: Coefficients) -> Endpoints:
    return _from_noise(-c.b * score, x, c)


_DATA_DEVIATION = 0.5  # Karras et al.'s sigma_data, of images in [-1, 1]


def _from_edm(f: Tensor, x: Tensor, c: Coefficients) -> Endpoints:
    s = _DATA_DEVIATION
    q = c.b**2 + s**2 * c.a**2
    x1 = s**2 * c.a * x / q + s * c.b * f / q.sqrt()
    return Endpoints(c.b * x / q - s * c.a * f / q.sqrt(), x1)


def _to_edm(ends: Endpoints, c: Coefficients) -> Tensor:
    s = _DATA_DEVIATION
    q = c.b**2 + s**2 * c.a**2
    return (c.b * ends.x1 - s**2 * c.a * ends.x0) / (s * q.sqrt())


velocity = Prediction("velocity", _from_velocity, lambda e, c: c.da * e.x1 + c.db * e.x0)
v_prediction = Prediction("v_prediction", _from_v_prediction, lambda e, c: c.a * e.x0 - c.b * e.x1)
noise = Prediction("noise", _from_noise, lambda e, c: e.x0)
target = Prediction("target", _from_target, lambda e, c: e.x1)
score = Prediction("score", _from_score, lambda e, c: -e.x0 / c.b.clamp(min=TINY))
edm = Prediction("edm", _from_edm, _to_edm)

PREDICTIONS = {p.name: p for p in (velocity, v_prediction, noise, target, score, edm)}
