"""Grids: from 0 to 1, and equal in what they are equal in."""

from __future__ import annotations

import pytest
import torch

from rectified.errors import UserError
from rectified.flow import straight, uniform_grid
from rectified.flow.grids import canonical_grid, check_grid, edm_grid, log_snr_grid
from rectified.flow.paths import PATHS, edm

every_path = pytest.mark.parametrize("name", PATHS)
GRIDS = [canonical_grid, log_snr_grid, edm_grid]
EVERY = [lambda _, steps: uniform_grid(steps), *GRIDS]


@every_path
@pytest.mark.parametrize("grid", EVERY)
@pytest.mark.parametrize("steps", [1, 2, 18, 500])
def test_a_grid_rises_from_0_to_1(name, grid, steps):
    times = grid(PATHS[name], steps)
    assert times.shape == (steps + 1,)
    assert times[0] == 0
    assert times[-1] == 1
    assert (times.diff() > 0).all()
    check_grid(times)
    check_grid(times.flip(0))


@every_path
def test_canonical_steps_are_equal_on_the_straight_image(name):
    path = PATHS[name]
    c = path.coefficients(canonical_grid(path, 20).double())
    tau = c.a / (c.a + c.b)
    torch.testing.assert_close(tau.diff(), tau.diff().mean().expand(20), rtol=1e-3, atol=1e-5)


def test_on_the_straight_path_it_is_the_uniform_grid():
    torch.testing.assert_close(canonical_grid(straight, 7), uniform_grid(7))


@every_path
def test_log_snr_steps_are_equal(name):
    path = PATHS[name]
    c = path.coefficients(log_snr_grid(path, 20)[1:-1].double())
    steps = torch.log(c.a / c.b).diff()
    torch.testing.assert_close(steps, steps.mean().expand(18), rtol=2e-3, atol=0)


def test_edm_s_levels_are_karras_s_equation_5():
    steps, rho = 18, 7
    i = torch.arange(steps, dtype=torch.float64)
    low, high = 0.002 ** (1 / rho), 80 ** (1 / rho)
    wanted = (high + i / (steps - 1) * (low - high)) ** rho
    found = edm.coefficients(edm_grid(edm, steps - 1).double()).b
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)
    # and the same levels of noise, b / a, on another path
    c = straight.coefficients(edm_grid(straight, steps - 1)[1:-1].double())
    torch.testing.assert_close(c.b / c.a, wanted[1:-1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("grid", EVERY)
@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(grid, steps):
    with pytest.raises(UserError, match=f"steps must be at least 1, got {steps}"):
        grid(straight, steps)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.5], r"two or more, got shape \(1,\)"),
        ([[0.0, 1.0]], r"two or more, got shape \(1, 2\)"),
        ([0.0, 0.5, 0.5, 1.0], "must rise or fall at every step"),
        ([0.0, 0.7, 0.5], "must rise or fall at every step"),
        ([0.0, float("nan"), 1.0], "must rise or fall at every step"),
    ],
)
def test_what_is_no_grid_is_refused(times, message):
    with pytest.raises(UserError, match=message):
        check_grid(torch.tensor(times))
