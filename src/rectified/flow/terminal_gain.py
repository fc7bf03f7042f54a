"""The terminal gain of a path: when one step from noise cannot be well-conditioned.

At the noise end of a path x = a x1 + b x0 a prediction of noise says where the sample goes by
x1 = (x - b x0) / a: whatever the network errs by is multiplied with b / a, which is 14.6 on Stable
Diffusion's schedule, 157 on DDPM's, and infinite on the straight path. Many steps forgive that, one
does not. The other predictions have a gain of at most 1 there.

References:
    Wang et al., Rectified diffusion, 2024, arXiv 2410.07303 (whose code changes the schedule and
    weighs the error by b / a); Salimans, Ho, 2022, arXiv 2202.00512 (v prediction).
"""

from __future__ import annotations

import math

from rectified.flow import predictions
from rectified.flow.paths import AffinePath
from rectified.flow.predictions import Prediction

ILL_CONDITIONED = 10.0  # gains above this cost one step visibly, in what was measured


def terminal_gain(path: AffinePath, predicts: Prediction) -> float:
    """The factor on the prediction's error in the target of a first step.

    Args:
        path: that the network was trained on.
        predicts: what it predicts.

    Example:
        >>> from rectified.flow.paths import stable_diffusion
        >>> round(terminal_gain(stable_diffusion(), predictions.noise), 1)
        14.6
        >>> terminal_gain(stable_diffusion(), predictions.v_prediction) < 1
        True
    """
    if predicts in (predictions.noise, predictions.score):
        return path.terminal_gain
    return 1.0 if predicts in (predictions.target, predictions.velocity) else _bounded(path)


def _bounded(path: AffinePath) -> float:
    """Of v_prediction and EDM's, b / (a^2 + b^2) or less: 1 where a^2 + b^2 = 1."""
    gain = path.terminal_gain
    return 1.0 if math.isinf(gain) else gain / (1 + gain**2) ** 0.5


def gain_warning(path: AffinePath, predicts: Prediction) -> str | None:
    """A warning with remedies for a user whose first step is ill-conditioned; else None.

    Example:
        >>> from rectified.flow.paths import vp_linear
        >>> gain_warning(vp_linear, predictions.v_prediction) is None
        True
        >>> gain_warning(vp_linear, predictions.noise)[:52]
        'terminal gain 152: one step multiplies the error of '
    """
    gain = terminal_gain(path, predicts)
    if gain <= ILL_CONDITIONED:
        return None
    size = "infinite" if math.isinf(gain) else f"{gain:.3g}"
    return (
        f"terminal gain {size}: one step multiplies the error of a {predicts.name} prediction "
        f"by that (more than {ILL_CONDITIONED:g}). Remedies: predict v_prediction or target; "
        "a loss in the target space; a schedule of smaller gain (Stable Diffusion's has 14.6, its "
        "linear betas, which the authors' script changes to, 25, vp_linear 152)"
    )
