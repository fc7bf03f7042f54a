"""Predictions: every conversion against what the end points say, and against published formulas."""

from __future__ import annotations

import math

import pytest
import torch

from rectified.flow import PREDICTIONS, predictions, straight
from rectified.flow.paths import PATHS, along, edm, vp_cosine
from rectified.flow.predictions import Endpoints, convert
from tests.flow.oracles import normal

INSIDE = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
every_source = pytest.mark.parametrize("source", PREDICTIONS)
every_path = pytest.mark.parametrize("name", PATHS)


def ends(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(count, 3), normal(count, 3, seed=1) + 0.5


def said(kind: str, name: str, x0, x1, t):
    """What a perfect network says, written out a second time from a, b and autograd's a', b'."""
    path = PATHS[name]
    t = t.clone().requires_grad_()
    a, b = path.coefficients(t)[:2]
    slopes = [
        torch.autograd.grad(value.sum(), t, retain_graph=True)[0]
        if value.requires_grad
        else torch.zeros_like(t)
        for value in (a, b)
    ]
    a, b, da, db = (along(value.detach(), x0) for value in (a, b, *slopes))
    if kind == "edm":  # the target of F: (D - c_skip y) / c_out at y = x / a, sigma = b / a
        sigma = b / a
        y = (a * x1 + b * x0) / a
        c_skip = 0.25 / (sigma**2 + 0.25)
        c_out = sigma * 0.5 / torch.sqrt(sigma**2 + 0.25)
        return (x1 - c_skip * y) / c_out
    return {
        "velocity": lambda: da * x1 + db * x0,
        "v_prediction": lambda: a * x0 - b * x1,
        "noise": lambda: x0,
        "target": lambda: x1,
        "score": lambda: -x0 / b,
    }[kind]()


@every_path
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_prediction_is_what_the_end_points_say(kind, name):
    x0, x1 = ends(len(INSIDE))
    found = PREDICTIONS[kind].of(Endpoints(x0, x1), INSIDE, PATHS[name])
    torch.testing.assert_close(found, said(kind, name, x0, x1, INSIDE), rtol=1e-9, atol=1e-9)


@every_path
@every_source
def test_every_conversion_is_what_the_end_points_say(source, name):
    path = PATHS[name]
    x0, x1 = ends(len(INSIDE))
    x, _ = path(x0, x1, INSIDE)
    output = said(source, name, x0, x1, INSIDE)
    for target, kind in PREDICTIONS.items():
        found = convert(output, x, INSIDE, path, source=PREDICTIONS[source], target=kind)
        wanted = said(target, name, x0, x1, INSIDE)
        # where a is small a noise prediction loses b / a digits of the target: 100 and more
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8, msg=target)


@every_path
@every_source
def test_there_and_back_is_nothing(source, name):
    path, there = PATHS[name], PREDICTIONS[source]
    t = torch.linspace(0.3, 0.9, 13, dtype=torch.float64)
    x, output = normal(len(t), 3), normal(len(t), 3, seed=1)  # of no perfect network
    c = path.coefficients(t)
    gain = max(1.0, float((c.b / c.a).max()))  # digits that noise loses on the target
    for target, back in PREDICTIONS.items():
        between = convert(output, x, t, path, source=there, target=back)
        found = convert(between, x, t, path, source=back, target=there)
        scale = gain * max(1.0, float(between.abs().max()))
        assert float((found - output).abs().max()) < 1e-12 * scale, target


@every_path
@every_source
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_are_finite(source, name, dtype):
    x, output = normal(2, 3).to(dtype), normal(2, 3, seed=1).to(dtype)
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    for target, kind in PREDICTIONS.items():
        found = convert(output, x, t, PATHS[name], source=PREDICTIONS[source], target=kind)
        assert found.dtype == dtype
        assert torch.isfinite(found).all(), target


@every_path
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_end_points_mix_to_the_point_they_came_from(kind, name):
    x, output = normal(len(INSIDE), 3), normal(len(INSIDE), 3, seed=1)
    found = PREDICTIONS[kind].endpoints(output, x, INSIDE, PATHS[name])
    c = PATHS[name].coefficients(INSIDE).like(x)
    torch.testing.assert_close(c.a * found.x1 + c.b * found.x0, x, rtol=1e-9, atol=1e-9)


def test_on_the_circle_the_velocity_is_a_turned_v_prediction():
    x0, x1 = ends(len(INSIDE))
    both = Endpoints(x0, x1)
    v = predictions.velocity.of(both, INSIDE, vp_cosine)
    other = predictions.v_prediction.of(both, INSIDE, vp_cosine)
    torch.testing.assert_close(v, -math.pi / 2 * other, rtol=1e-12, atol=1e-12)


def test_edm_s_preconditioning_is_karras_s():
    """D = c_skip x + c_out F, on EDM's own path (arXiv 2206.00364, table 1)."""
    x, f = normal(len(INSIDE), 3), normal(len(INSIDE), 3, seed=1)
    sigma = along(edm.coefficients(INSIDE).b, x)
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / torch.sqrt(0.25 + sigma**2)
    found = predictions.edm.endpoints(f, x, INSIDE, edm)
    torch.testing.assert_close(found.x1, c_skip * x + c_out * f)


def test_edm_s_head_on_the_straight_path_is_rfpp_s():
    """sigma = s / (1 - s), D at x / (1 - s), v = (x - D) / s; s = 1 - t (arXiv 2405.20320)."""
    x, f = normal(len(INSIDE), 3), normal(len(INSIDE), 3, seed=1)
    s = along(1 - INSIDE, x)
    sigma, y = s / (1 - s), x / (1 - s)
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / torch.sqrt(0.25 + sigma**2)
    backward = (x - (c_skip * y + c_out * f)) / s  # theirs points from data to noise
    kinds = {"source": predictions.edm, "target": predictions.velocity}
    torch.testing.assert_close(convert(f, x, INSIDE, straight, **kinds), -backward)


def test_the_score_is_the_gradient_of_the_log_density():
    """Of x_t = a x1 + b x0 with one x1: normal about a x1, deviation b."""
    path = PATHS["vp_linear"]
    x0, x1 = ends(len(INSIDE))
    x, _ = path(x0, x1, INSIDE)
    x = x.requires_grad_()
    c = path.coefficients(INSIDE).like(x)
    log_density = -0.5 * ((x - c.a * x1) / c.b).square().sum()
    (wanted,) = torch.autograd.grad(log_density, x)
    torch.testing.assert_close(predictions.score.of(Endpoints(x0, x1), INSIDE, path), wanted)


def test_v_prediction_is_bounded_at_both_ends_of_every_path():
    """Its end points never are differences of large numbers: both <= (|x| + |v|) / root n."""
    for path in PATHS.values():
        t = torch.linspace(0, 1, 101, dtype=torch.float64)
        x, v = normal(101, 3), normal(101, 3, seed=1)
        found = predictions.v_prediction.endpoints(v, x, t, path)
        c = path.coefficients(t).like(x)
        largest = (x.norm(dim=1) + v.norm(dim=1)) / torch.sqrt(c.a**2 + c.b**2)[:, 0]
        assert (found.x0.norm(dim=1) <= largest + 1e-12).all()
        assert (found.x1.norm(dim=1) <= largest + 1e-12).all()
