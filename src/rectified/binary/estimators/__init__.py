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

s is the logistic function.

Two facts worth knowing (both follow from the formulas). For unit-variance inputs every f near the
sign has a mean slope of about E|z| = 0.80 (Stein's identity), so on normalised activations
estimators differ in the spread of their slopes only. On weights, which are small, a sharper f
multiplies the gradient: much of what it does is a larger step. `normalize_gain` takes that away.

`ESTIMATORS` is the table of the ways to train that have a name. A new one is its file and its row.
"""

from functools import partial

from rectified.binary.estimators.approx_sign import ApproxSign
from rectified.binary.estimators.dsq import DSQ
from rectified.binary.estimators.ede import EDE
from rectified.binary.estimators.fda import FDA
from rectified.binary.estimators.rbnn import RBNN
from rectified.binary.estimators.reste import GainSTE, ReSTE
from rectified.binary.estimators.scheme import Scheme
from rectified.binary.estimators.straight_through import STE, ClippedSTE
from rectified.binary.estimators.surrogate import Surrogate
from rectified.binary.estimators.swish_sign import SwishSign

WIDE = partial(ClippedSTE, 1.5)  # where ReSTE starts

ESTIMATORS: dict[str, Scheme] = {
    "ste": Scheme("STE", STE),
    "clipped_ste": Scheme("STE clipped at 1", ClippedSTE),
    "wide_ste": Scheme("STE clipped at 1.5", WIDE, is_control=True),
    "ste_gain": Scheme("STE with ReSTE's gain", GainSTE, WIDE, is_control=True),
    "approx_sign": Scheme("ApproxSign", ApproxSign),
    "swish_sign": Scheme("SwishSign", SwishSign),
    "dsq": Scheme("DSQ", DSQ),
    "ede": Scheme("EDE", EDE),
    "irnet": Scheme("EDE, standardised weights", EDE, standardize=True),
    "rbnn": Scheme("RBNN", RBNN, partial(RBNN, activations=True)),
    "fda": Scheme("FDA", FDA),
    "reste": Scheme("ReSTE", ReSTE),
    "reste_relative": Scheme("ReSTE, relative m and t", partial(ReSTE, relative=True)),
    "reste_normalized": Scheme("ReSTE, gain normalised", partial(ReSTE, normalize_gain=True)),
    "float": Scheme("full precision", None, is_control=True),
}

__all__ = [
    "DSQ",
    "EDE",
    "ESTIMATORS",
    "FDA",
    "RBNN",
    "STE",
    "ApproxSign",
    "ClippedSTE",
    "GainSTE",
    "ReSTE",
    "Scheme",
    "Surrogate",
    "SwishSign",
]
