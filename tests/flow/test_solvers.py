"""Solvers: orders of convergence, exact cases, and what each is not."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch

from rectified.errors import UserError
from rectified.flow import (
    Field,
    euler,
    heun,
    integrate,
    natural_euler,
    predictions,
    straight,
    uniform_grid,
)
from rectified.flow.paths import PATHS, vp_cosine, vp_linear
from rectified.flow.predictions import Endpoints
from rectified.flow.solvers import (
    DDIM,
    SOLVERS,
    Heun,
    StepsTogether,
    adaptive,
    exponential2,
    midpoint,
    mix,
    renoise,
    rk4,
)
from tests.flow.oracles import GaussianFlow, named, normal


def fine(steps, first=0.0, last=1.0):
    """Equal steps in float64."""
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def swing(x, t):
    """x' = -x + sin(3 t): curved in both."""
    return -x + torch.sin(3 * t)


def swung(x, t=1.0):
    """Where `swing` is at t from x at 0."""
    particular = (math.sin(3 * t) - 3 * math.cos(3 * t)) / 10
    return particular + (x + 0.3) * math.exp(-t)


ORDERS = [(euler, 1), (midpoint, 2), (Heun("heun"), 2), (heun, 2), (rk4, 4)]


@pytest.mark.parametrize(("step", "order"), ORDERS, ids=named)
def test_errors_fall_with_the_order_of_the_method(step, order):
    x = normal(4, 2)
    errors = [
        float((integrate(swing, x, fine(n), step)[-1] - swung(x)).abs().max()) for n in (16, 32, 64)
    ]
    for coarse, finer in pairwise(errors):
        assert math.log2(coarse / finer) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("step", "order"), ORDERS, ids=named)
def test_backward_undoes_forward_within_the_error_of_the_method(step, order):
    x = normal(4, 2)
    there = integrate(swing, x, fine(64), step)[-1]
    back = integrate(swing, there, fine(64).flip(0), step)[-1]
    assert float((back - x).abs().max()) < 10 * 64.0**-order


@pytest.mark.parametrize(
    ("step", "evaluations"),
    [
        (euler, 7),
        (midpoint, 14),
        (heun, 13),
        (Heun("heun"), 14),
        (rk4, 28),
        (natural_euler, 7),
        (renoise, 7),
        (exponential2, 7),
        (DDIM(), 7),
    ],
    ids=named,
)
def test_evaluations_are_counted(step, evaluations):
    asked = []
    exact = GaussianFlow(vp_linear)

    def network(x, t):
        asked.append(1)
        return exact.network(predictions.velocity)(x, t)

    path = integrate(Field(network, vp_linear), normal(3, 2), uniform_grid(7).double(), step)
    assert path.evaluations == len(asked) == evaluations
    assert len(path) == 8


def test_one_step_of_heun_is_euler_s():
    x = normal(3, 2)
    one, other = (integrate(swing, x, fine(1), step) for step in (heun, euler))
    assert torch.equal(one[-1], other[-1])
    assert one.evaluations == 1


def test_every_step_is_exact_on_a_constant_velocity():
    x, v = normal(3, 2), normal(3, 2, seed=1)
    for step, _ in ORDERS:
        torch.testing.assert_close(integrate(lambda *_: v, x, fine(3), step)[-1], x + v)


def test_a_trajectory_is_every_state():
    x = normal(3, 2)
    path = integrate(swing, x, fine(200), rk4)
    assert torch.equal(path[0], x)
    for i in (50, 200):
        torch.testing.assert_close(path[i], swung(x, i / 200), rtol=1e-8, atol=1e-9)


class Turning(NamedTuple):
    """A state that is no tensor: a point and its angle."""

    point: torch.Tensor
    angle: torch.Tensor


def test_the_state_may_be_anything_that_a_step_moves():
    def step(velocity, state, t, s):
        slopes = velocity(state, t)
        return Turning(*(v + (s - t) * slope for v, slope in zip(state, slopes, strict=True)))

    start = Turning(normal(3, 2), torch.zeros(3).double())
    path = integrate(lambda state, t: Turning(-state.point, torch.ones(3)), start, fine(10), step)
    assert isinstance(path[-1], Turning)
    torch.testing.assert_close(path[-1].angle, torch.ones(3).double())
    torch.testing.assert_close(path[-1].point, 0.9**10 * start.point)
    assert path.evaluations == 10


# ---- steps between end points


class Image:
    """A field on the straight path with the end points of another, at the same ratios."""

    path = straight

    def __init__(self, other):
        self.other = other

    def endpoints(self, y, tau):
        t = self.other.path.time(tau / (1 - tau)).clamp(0, 1)
        c = self.other.path.coefficients(t)
        return self.other.endpoints(y * (c.a + c.b), t)

    def __call__(self, y, tau):
        ends = self.endpoints(y, tau)
        return ends.x1 - ends.x0


@pytest.mark.parametrize("name", ["vp_linear", "sub_vp", "vp_cosine", "edm", "ddpm"])
def test_natural_euler_is_euler_on_the_straight_image(name):
    path = PATHS[name]

    def network(x, t):
        return torch.tanh(x) - 0.3 * x

    field = Field(network, path, predictions.v_prediction)
    times = fine(9, 0.0, 0.99)
    c = path.coefficients(times)
    scale, tau = c.a + c.b, c.a / (c.a + c.b)
    x = path.start(normal(5, 2))
    ours = integrate(field, x, times, natural_euler)
    theirs = integrate(Image(field), x / scale[0], tau, euler)
    worst = max(
        float((one / s - other).abs().max())
        for one, other, s in zip(ours, theirs, scale, strict=True)
    )
    assert worst < 1e-12


@pytest.mark.parametrize("name", PATHS)
def test_natural_euler_is_first_order(name):
    exact = GaussianFlow(PATHS[name])
    x = PATHS[name].start(normal(5, 2))
    errors = []
    for n in (64, 128):
        times = fine(n, 0.0, 0.9)
        field = Field(
            exact.network(predictions.v_prediction), PATHS[name], predictions.v_prediction
        )
        found = integrate(field, x, times, natural_euler)[-1]
        errors.append(float((found - exact.at(x, times[-1], times[0])).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)


class Paired:
    """A perfectly first-order flow: the end points never change along a trajectory."""

    def __init__(self, path, x0, x1):
        self.path, self.ends = path, Endpoints(x0, x1)

    def endpoints(self, x, t):
        return self.ends

    def __call__(self, x, t):
        return predictions.velocity.of(self.ends, t, self.path)


@pytest.mark.parametrize("step", [natural_euler, renoise, exponential2, DDIM(0.0)], ids=named)
@pytest.mark.parametrize("name", PATHS)
def test_on_a_first_order_flow_any_number_of_steps_is_exact(step, name):
    x0, x1 = normal(4, 3), normal(4, 3, seed=1)
    path = PATHS[name]
    start = path(x0, x1, torch.tensor(0.0).double())[0]
    field = Paired(path, x0, x1)
    if step is renoise:  # begins at a source point, as samples do
        start = path.start(x0)
    wanted = path(x0, x1, fine(1)[1])[0]
    for steps in (1, 2, 7):
        found = integrate(field, start, fine(steps), step)
        torch.testing.assert_close(found[-1], wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", PATHS)
def test_renoise_keeps_the_first_source_point(name):
    """x_s = a(s) x1_hat + b(s) x0(0), on a flow whose end points do change."""
    path, exact = PATHS[name], GaussianFlow(PATHS[name])
    field = Field(exact.network(predictions.v_prediction), path, predictions.v_prediction)
    x0, times = normal(4, 2), fine(5)
    found = integrate(field, path.start(x0), times, renoise)
    x = path.start(x0)
    for number, (t, s) in enumerate(pairwise(times)):
        c = path.coefficients(s)
        x = c.a * exact.endpoints(x, t).x1 + c.b * x0
        torch.testing.assert_close(found[number + 1], x, rtol=1e-9, atol=1e-9)


def test_renoise_is_no_consistent_solver_on_a_flow_that_is_not_first_order():
    exact = GaussianFlow(straight)
    field, x = Field(exact.network(predictions.velocity)), normal(200, 2)
    true = exact.at(x, torch.tensor(1.0).double(), torch.tensor(0.0).double())
    errors = {
        step: [float((integrate(field, x, fine(n), step)[-1] - true).std()) for n in (4, 64)]
        for step in (euler, renoise)
    }
    assert errors[euler][1] < errors[euler][0] / 8
    assert errors[renoise][1] > 5 * errors[euler][1]


def test_one_step_of_renoise_alone_is_natural_euler():
    field = Field(GaussianFlow(straight).network(predictions.velocity))
    x, (t, s) = normal(3, 2), fine(1)
    torch.testing.assert_close(renoise(field, x, t, s), natural_euler(field, x, t, s))
    torch.testing.assert_close(exponential2(field, x, t, s), natural_euler(field, x, t, s))


@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine", "straight", "edm"])
def test_exponential2_is_second_order(name):
    path, exact = PATHS[name], GaussianFlow(PATHS[name])
    field = Field(exact.network(predictions.target), path, predictions.target)
    x = normal(5, 2)
    errors = []
    for n in (64, 128):
        times = fine(n, 0.3, 0.9)
        found = integrate(field, x, times, exponential2)[-1]
        errors.append(float((found - exact.at(x, times[-1], times[0])).abs().max()))
    for coarse, finer in pairwise(errors):
        assert math.log2(coarse / finer) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("step", [natural_euler, exponential2, DDIM(0.0)], ids=named)
@pytest.mark.parametrize("is_backward", [False, True])
def test_from_end_to_end_all_states_are_finite(name, step, is_backward):
    path, exact = PATHS[name], GaussianFlow(PATHS[name])
    field = Field(exact.network(predictions.v_prediction), path, predictions.v_prediction)
    x = normal(3, 2) if is_backward else path.start(normal(3, 2))
    times = fine(20).flip(0) if is_backward else fine(20)
    assert torch.isfinite(torch.stack(list(integrate(field, x, times, step)))).all()


@pytest.mark.parametrize("step", [natural_euler, exponential2], ids=named)
@pytest.mark.parametrize("name", ["straight", "vp_cosine"])
def test_end_points_backward_and_forward_meet(step, name):
    path, exact = PATHS[name], GaussianFlow(PATHS[name])
    field = Field(exact.network(predictions.v_prediction), path, predictions.v_prediction)
    x1, times = normal(3, 2), fine(100)
    x0 = integrate(field, x1, times.flip(0), step)[-1]
    found = integrate(field, x0, times, step)[-1]
    torch.testing.assert_close(found, x1, atol=0.05, rtol=0.05)


def test_mix_is_the_point_of_the_path():
    x0, x1, s = normal(3, 2), normal(3, 2, seed=1), torch.tensor(0.3).double()
    torch.testing.assert_close(mix(vp_cosine, Endpoints(x0, x1), s), vp_cosine(x0, x1, s)[0])


# ---- with noise


def test_ddim_without_noise_is_natural_euler():
    field = Field(GaussianFlow(vp_linear).network(predictions.velocity), vp_linear)
    x = normal(5, 2)
    ours, theirs = (integrate(field, x, fine(10), step) for step in (DDIM(0.0), natural_euler))
    torch.testing.assert_close(ours[-1], theirs[-1])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_variance_whatever_the_noise(eta):
    """N(m, d^2) comes out in law: the mean and variance of the target (a to b is Gaussian)."""
    exact = GaussianFlow(vp_linear)
    field = Field(exact.network(predictions.velocity), vp_linear)
    step = DDIM(eta, torch.Generator().manual_seed(1))
    found = integrate(field, normal(10_000, 1), fine(300), step)
    assert float(found[-1].mean()) == pytest.approx(exact.mean, abs=0.03)
    assert float(found[-1].std()) == pytest.approx(exact.deviation, abs=0.02)
    c = vp_linear.coefficients(fine(300)[150])
    middle = float((c.a**2 * exact.deviation**2 + c.b**2).sqrt())
    assert float(found[150].std()) == pytest.approx(middle, abs=0.03)


def test_ddim_with_all_noise_is_ddpm_s_ancestral_step():
    """mu = a(s) x1 + root(b(s)^2 - sigma^2) x0, sigma^2 = beta~ (arXiv 2006.11239, eq. 7)."""
    path = PATHS["ddpm"]
    x0, x1 = normal(1, 1), normal(1, 1, seed=1)
    k = 500
    t, s = (torch.tensor(1 - (level + 1) / 1000).double() for level in (k, k - 1))
    x = path(x0, x1, t)[0].expand(50_000, 1)
    field = Paired(path, x0.expand(50_000, 1), x1.expand(50_000, 1))
    found = DDIM(1.0, torch.Generator().manual_seed(0))(field, x, t, s)
    beta, kept = path.betas[k], torch.cumprod(1 - path.betas, 0)
    mean = (kept[k - 1].sqrt() * beta * x1 + (1 - beta).sqrt() * (1 - kept[k - 1]) * x[:1]) / (
        1 - kept[k]
    )
    variance = (1 - kept[k - 1]) / (1 - kept[k]) * beta
    error = float(variance.sqrt()) / 50_000**0.5
    assert float(found.mean()) == pytest.approx(float(mean), abs=5 * error)
    assert float(found.var()) == pytest.approx(float(variance), rel=0.03)


def test_ddim_s_noise_is_the_generator_s():
    field = Field(GaussianFlow(vp_linear).network(predictions.velocity), vp_linear)
    found = [
        integrate(field, normal(3, 2), fine(4), DDIM(1.0, torch.Generator().manual_seed(seed)))[-1]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# ---- adaptive


def test_adaptive_steps_keep_their_tolerance():
    x = normal(4, 2)
    errors, evaluations = [], []
    for tolerance in (1e-3, 1e-6, 1e-9):
        path = adaptive(swing, x, fine(2), tolerance=tolerance)
        errors.append(float((path[-1] - swung(x)).abs().max()))
        evaluations.append(path.evaluations)
        assert errors[-1] < 10 * tolerance
        torch.testing.assert_close(path[1], swung(x, 0.5), atol=10 * tolerance, rtol=0)
    assert evaluations == sorted(evaluations)
    assert torch.equal(path[0], x)


def test_adaptive_steps_go_backward():
    x = normal(4, 2)
    found = adaptive(swing, swung(x), fine(1).flip(0), tolerance=1e-8)[-1]
    torch.testing.assert_close(found, x, atol=1e-6, rtol=0)


def test_adaptive_without_torchdiffeq_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(UserError, match=r"pip install 'rectified\[adaptive\]'"):
        adaptive(swing, normal(4, 2), fine(1))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: integrate(swing, normal(2, 2), torch.tensor([0.0])), "times must be two or more"),
        (
            lambda: integrate(swing, normal(2, 2), torch.tensor([0.0, 0.5, 0.2])),
            r"times must rise or fall at every step, got \[0.0",
        ),
        (lambda: adaptive(swing, normal(2, 2), torch.tensor([0.0])), "times must be two or more"),
        (lambda: adaptive(swing, normal(2, 2), fine(1), tolerance=0.0), "tolerance must be"),
        (lambda: Heun("midpoint"), "unknown last 'midpoint'; choose from euler, heun"),
        (lambda: DDIM(1.5), r"eta must be in \[0, 1\], got 1.5"),
        *(
            (
                lambda step=step: integrate(swing, normal(2, 2), fine(2), step),
                "steps between end points: give it a rectified.flow.Field, got function",
            )
            for step in (natural_euler, renoise, exponential2, DDIM())
        ),
    ],
)
def test_what_cannot_be_integrated_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_steps_that_know_of_each_other_say_so():
    together = {name for name, step in SOLVERS.items() if isinstance(step, StepsTogether)}
    assert together == {"heun", "exponential2", "renoise"}


def test_a_stepper_of_its_own_for_each_integration_is_asked_for():
    class Counting:
        def begin(self, state, times):
            left = list(range(len(times) - 1))
            return lambda velocity, x, t, s: x + left.pop()

        def __call__(self, velocity, x, t, s):
            raise AssertionError("one step alone")

    assert integrate(swing, 0, fine(3), Counting()) == [0, 2, 3, 3]
    assert integrate(swing, 0, fine(3), Counting()) == [0, 2, 3, 3]
