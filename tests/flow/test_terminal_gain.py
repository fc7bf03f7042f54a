"""The terminal gain: which first steps are ill-conditioned."""

import pytest
import torch

from rectified.flow import gain_warning, predictions, straight, terminal_gain
from rectified.flow.paths import DDPM, linear_betas, stable_diffusion, vp_cosine, vp_linear

KINDS = [predictions.noise, predictions.target, predictions.v_prediction, predictions.edm]


@pytest.mark.parametrize("predicts", KINDS, ids=lambda one: one.name)
@pytest.mark.parametrize("path", [stable_diffusion(), vp_linear, DDPM(linear_betas())])
def test_the_gain_is_what_an_error_grows_by(path, predicts):
    x, start = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    ends = [predicts.endpoints(x + error, x, start, path).x1.item() for error in (0.0, 1.0)]
    grown = abs(ends[1] - ends[0])
    bound = terminal_gain(path, predicts)
    assert grown <= bound + 1e-9
    if predicts is not predictions.edm:  # whose scale is the data's deviation
        assert grown == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize(
    ("path", "predicts", "warns"),
    [
        (stable_diffusion(), predictions.noise, True),
        (stable_diffusion(), predictions.v_prediction, False),
        (DDPM(linear_betas()), predictions.noise, True),
        (vp_linear, predictions.score, True),
        (vp_cosine, predictions.noise, True),
        (vp_cosine, predictions.v_prediction, False),
        (straight, predictions.velocity, False),
        (DDPM(linear_betas(10, 0.1, 0.2)), predictions.noise, False),
    ],
)
def test_noise_predictions_of_high_gain_are_warned_about(path, predicts, warns):
    warning = gain_warning(path, predicts)
    assert (warning is not None) == warns
    if warning:
        assert "v_prediction" in warning
        assert "linear betas" in warning
