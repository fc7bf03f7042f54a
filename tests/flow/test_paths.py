"""Paths: closed forms, derivatives by other routes, and both ends."""

from __future__ import annotations

import math

import pytest
import torch

from rectified.errors import UserError
from rectified.flow import straight
from rectified.flow.paths import (
    DDPM,
    EDGE,
    EDM,
    PATHS,
    AffinePath,
    Path,
    SubVP,
    VPLinear,
    along,
    edm,
    linear_betas,
    vp_linear,
)
from tests.flow.oracles import normal

every_path = pytest.mark.parametrize("name", PATHS)
INSIDE = torch.linspace(0.003, 0.997, 211, dtype=torch.float64)
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)

# (a, b) written out a second time, in plain floats
WRITTEN = {
    "straight": lambda t: (t, 1 - t),
    "vp_cosine": lambda t: (math.sin(math.pi * t / 2), math.cos(math.pi * t / 2)),
    "vp_linear": lambda t: _vp(t)[:2],
    "sub_vp": lambda t: (_vp(t)[0], 1 - _vp(t)[0] ** 2),
    "edm": lambda t: (1.0, (80 ** (1 / 7) + t * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7),
}


def _vp(t):
    s = 1 - t
    a = math.exp(-(s**2) * 19.9 / 4 - s * 0.1 / 2)
    return a, math.sqrt(1 - a**2)


@pytest.mark.parametrize("name", WRITTEN)
def test_coefficients_are_their_formulas(name):
    found = PATHS[name].coefficients(INSIDE)
    wanted = torch.tensor([WRITTEN[name](float(t)) for t in INSIDE], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(found[:2], 1), wanted, rtol=1e-10, atol=1e-12)


def test_discrete_levels_are_the_products_of_one_less_beta():
    for betas in (linear_betas(), linear_betas(10, 0.1, 0.5)):
        path = DDPM(betas)
        k = torch.arange(path.levels, dtype=torch.float64)
        found = path.coefficients(1 - (k + 1) / path.levels)
        kept = torch.cumprod(1 - betas, 0)
        torch.testing.assert_close(found.a**2, kept, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.b**2, 1 - kept, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(path.level(1 - (k + 1) / path.levels), k, atol=1e-9, rtol=0)


@every_path
def test_derivatives_are_those_of_autograd(name):
    t = INSIDE.clone().requires_grad_()
    found = PATHS[name].coefficients(t)
    for value, slope in ((found.a, found.da), (found.b, found.db)):
        if not value.requires_grad:  # a constant
            assert (slope == 0).all()
            continue
        (wanted,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(slope.detach(), wanted, rtol=1e-9, atol=1e-10)


@every_path
def test_derivatives_are_finite_differences(name):
    h = 1e-6
    t = INSIDE + 1.7e-4  # not on a discrete level, where the slope jumps
    now, left, right = (PATHS[name].coefficients(t + shift) for shift in (0, -h, h))
    for slope, before, after in ((now.da, left.a, right.a), (now.db, left.b, right.b)):
        torch.testing.assert_close(slope, (after - before) / (2 * h), rtol=1e-5, atol=1e-6)


@every_path
def test_the_velocity_is_how_points_move(name):
    x0, x1, t = normal(5, 3), normal(5, 3, seed=1), torch.linspace(0.1, 0.9, 5).double() + 3e-5
    h = 1e-6
    (before, _), (_, v), (after, _) = (PATHS[name](x0, x1, t + shift) for shift in (-h, 0, h))
    torch.testing.assert_close(v, (after - before) / (2 * h), rtol=1e-5, atol=1e-5)


@every_path
def test_the_time_of_a_ratio_is_its_inverse(name):
    path = PATHS[name]
    t = torch.cat([ENDS, INSIDE])
    c = path.coefficients(t)
    torch.testing.assert_close(path.time(c.a / c.b), t, rtol=0, atol=1e-10)


@every_path
def test_ratios_beyond_a_path_are_its_ends_once_clamped(name):
    beyond = torch.tensor([0.0, math.inf], dtype=torch.float64)
    assert PATHS[name].time(beyond).clamp(0, 1).tolist() == pytest.approx([0, 1], abs=1e-12)


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_are_finite_and_no_coefficient_is_negative(name, dtype):
    c = PATHS[name].coefficients(ENDS.to(dtype))
    assert all(torch.isfinite(value).all() and value.dtype == dtype for value in c)
    assert (c.a >= 0).all()
    assert (c.b >= 0).all()
    assert (c.wronskian > 0).all()


@every_path
def test_the_wronskian_is_positive_and_the_ratio_rises(name):
    c = PATHS[name].coefficients(INSIDE)
    assert (c.wronskian > 0).all()
    assert ((c.a / c.b).diff() > 0).all()


@pytest.mark.parametrize("name", ["vp_cosine", "vp_linear", "ddpm", "scaled_linear"])
def test_variance_preserving_paths_lie_on_the_circle(name):
    c = PATHS[name].coefficients(torch.cat([ENDS, INSIDE]))
    torch.testing.assert_close(c.a**2 + c.b**2, torch.ones_like(c.a), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("path", "gain"),
    [
        (PATHS["vp_linear"], 152),
        (PATHS["sub_vp"], 152),
        (PATHS["scaled_linear"], 14.6),
        (DDPM(linear_betas(1000, 0.00085, 0.012)), 25),
        (PATHS["ddpm"], 157),
        (edm, 80),
        (straight, math.inf),
    ],
)
def test_terminal_gains_are_the_published_ones(path, gain):
    assert path.terminal_gain == pytest.approx(gain, rel=0.01)


def test_the_circle_s_quarter_begins_at_pure_noise():
    assert PATHS["vp_cosine"].terminal_gain > 1e15  # sin(0) = 0
    assert PATHS["vp_cosine"].terminal_gain == math.inf


def test_ends_of_a_path_are_its_points():
    x0, x1 = normal(2, 3), normal(2, 3, seed=1)
    for name in ("straight", "vp_cosine"):
        torch.testing.assert_close(PATHS[name](x0, x1, ENDS[0])[0], x0)
        torch.testing.assert_close(PATHS[name](x0, x1, ENDS[1])[0], x1)
    assert torch.equal(edm.start(x0), 80 * x0)
    assert torch.equal(vp_linear.start(x0), x0)


def test_only_the_straight_path_is_straight():
    assert [name for name, path in PATHS.items() if path.is_straight] == ["straight"]
    x0, x1 = normal(4, 2), normal(4, 2, seed=1)
    assert torch.equal(straight(x0, x1, INSIDE[:4])[1], x1 - x0)


def test_a_constant_beta_is_a_path_too():
    path = VPLinear(5.0, 5.0)
    c = path.coefficients(INSIDE)
    torch.testing.assert_close(c.a, torch.exp(-2.5 * (1 - INSIDE)))
    torch.testing.assert_close(path.time(c.a / c.b), INSIDE, rtol=0, atol=1e-10)


def test_an_infinite_derivative_is_asked_for_no_nearer_than_the_edge():
    c = vp_linear.coefficients(torch.tensor([1 - EDGE, 1.0], dtype=torch.float64))
    torch.testing.assert_close(c.db[0], c.db[1])
    assert c.db[1] < -10


def test_times_are_one_a_point_or_one_for_all():
    x = torch.zeros(3, 2, 2)
    assert along(torch.tensor(0.5), x).shape == ()
    assert along(torch.zeros(3), x).shape == (3, 1, 1)


def test_every_path_is_a_path():
    assert all(isinstance(path, Path) for path in PATHS.values())
    with pytest.raises(NotImplementedError):
        AffinePath().coefficients(INSIDE)
    with pytest.raises(NotImplementedError):
        AffinePath().time(INSIDE)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: straight(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2)), "have one shape"),
        (lambda: vp_linear(torch.zeros(2), torch.zeros(3), torch.zeros(2)), "have one shape"),
        (
            lambda: straight(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(1)),
            r"one number or one a point, got shape \(1,\) for 4 points",
        ),
        (lambda: along(torch.zeros(2, 2), torch.zeros(2, 2)), "one number or one a point"),
        (lambda: VPLinear(0.0, 1.0), "0 < beta_min <= beta_max, got 0.0 and 1.0"),
        (lambda: SubVP(2.0, 1.0), "0 < beta_min <= beta_max"),
        (lambda: EDM(1.0, 0.5), "0 < sigma_min < sigma_max"),
        (lambda: EDM(rho=0.0), "rho positive"),
        (lambda: DDPM(torch.tensor([0.1])), "two or more numbers in"),
        (lambda: DDPM(torch.tensor([0.1, 1.0])), "two or more numbers in"),
    ],
)
def test_impossible_paths_and_points_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
