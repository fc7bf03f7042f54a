"""One list of properties for every estimator, and the reference's table for ReSTE."""

import math
from functools import partial

import pytest
import torch

from rectified.binary import (
    DSQ,
    EDE,
    FDA,
    RBNN,
    STE,
    ApproxSign,
    ClippedSTE,
    Estimator,
    GainSTE,
    ReSTE,
    SwishSign,
    binarize,
)
from rectified.errors import UserError

ALL = {
    "STE": STE,
    "ClippedSTE": ClippedSTE,
    "ApproxSign": ApproxSign,
    "SwishSign": SwishSign,
    "DSQ": DSQ,
    "EDE": EDE,
    "RBNN": RBNN,
    "RBNN activations": partial(RBNN, activations=True),
    "FDA": FDA,
    "ReSTE": ReSTE,
    "GainSTE": GainSTE,
}
SCHEDULED = {"EDE", "RBNN", "RBNN activations", "FDA", "ReSTE", "GainSTE"}
# where f is differentiable and f' is its derivative, away from kinks
RANGES = {
    "ClippedSTE": (0, 0.999),
    "DSQ": (0, 0.999),
    "ReSTE": (0.101, 1.499),  # inside the plateau it is the secant
    "GainSTE": (0, 1.499),
}
every = pytest.mark.parametrize("name", ALL)


def grid(low=0.0, high=3.0, count=801):
    side = torch.linspace(low, high, count, dtype=torch.float64)
    return torch.cat([-side.flip(0), side])


def at(name, progress):
    estimator = ALL[name]()
    estimator.schedule(progress)
    return estimator


@every
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_the_slope_is_the_finite_difference_of_the_value(name, progress):
    estimator = at(name, progress)
    x, h = grid(*RANGES.get(name, (0.0, 3.0))), 1e-6
    difference = (estimator.value(x + h) - estimator.value(x - h)) / (2 * h)
    slope = estimator.slope(x)
    kinks = (slope[1:] - slope[:-1]).abs() > 0.5  # a step of the slope lies between two points
    smooth = torch.ones_like(x, dtype=torch.bool)
    smooth[1:] &= ~kinks
    smooth[:-1] &= ~kinks
    assert smooth.float().mean() > 0.9
    assert torch.allclose(slope[smooth], difference[smooth], atol=2e-4, rtol=2e-4)


@every
def test_values_are_odd_and_slopes_even(name):
    estimator, x = at(name, 0.6), grid(1e-3)
    assert torch.allclose(estimator.value(-x), -estimator.value(x))
    assert torch.allclose(estimator.slope(-x), estimator.slope(x))


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_and_slopes_are_finite_and_keep_the_type(name, dtype):
    info = torch.finfo(dtype)
    x = torch.tensor([0.0, -0.0, info.tiny, 5e-324, 0.1, 1.5, -1.0, 3.0], dtype=dtype)
    far = torch.tensor([info.max, -info.max, math.inf, -math.inf], dtype=dtype)
    for progress in (0.0, 1.0):
        estimator = at(name, progress)
        assert estimator.value(x).isfinite().all()
        slope = estimator.slope(torch.cat([x, far]))
        assert slope.dtype == estimator.value(x).dtype == dtype
        assert slope.isfinite().all()


@every
def test_nan_shows_in_the_gradient_and_not_in_the_sign(name):
    x = torch.tensor([math.nan], requires_grad=True)
    y = binarize(x, at(name, 1.0))
    assert y.item() == -1
    y.sum().backward()
    hides = name in ("STE", "ClippedSTE", "GainSTE")  # constants and comparisons
    assert x.grad.isnan().all() != hides


@every
def test_the_state_survives_a_state_dict(name):
    estimator, fresh = at(name, 0.7), ALL[name]()
    assert bool(estimator.state_dict()) == (name in SCHEDULED)
    fresh.load_state_dict(estimator.state_dict())
    x = grid()
    assert torch.equal(fresh.slope(x), estimator.slope(x))
    assert torch.equal(fresh.value(x), estimator.value(x))
    if name in SCHEDULED:
        assert not torch.equal(ALL[name]().slope(x), estimator.slope(x))


@every
@pytest.mark.usefixtures("unchecked")
def test_one_compilation_serves_the_whole_schedule(name):
    estimator = ALL[name]()
    compiled = torch.compile(
        lambda x: binarize(x, estimator), fullgraph=True, backend="aot_eager", dynamic=False
    )
    torch._dynamo.reset()
    for progress in (0.0, 0.5, 1.0):
        estimator.schedule(progress)
        gradients = []
        for call in (compiled, estimator):
            x = grid(count=40).float().requires_grad_()
            call(x).sum().backward()
            gradients.append(x.grad)
        assert torch.equal(*gradients)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(grid(count=40).float().requires_grad_())


@every
def test_normalised_slopes_have_the_mean_one(name):
    estimator = ALL[name](normalize_gain=True)
    estimator.schedule(1.0)
    z = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    assert estimator.slope(z).mean().item() == pytest.approx(1, abs=1e-4)


@every
def test_an_estimator_is_one(name):
    assert isinstance(ALL[name](), Estimator)
    assert "(" in repr(ALL[name]())


@pytest.mark.parametrize("name", ["EDE", "RBNN", "FDA", "ReSTE"])
def test_later_estimators_are_nearer_to_the_sign(name):
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    errors = []
    for progress in (0.5, 0.75, 1.0):
        estimator = at(name, progress)
        errors.append((estimator.value(z) - estimator.forward(z)).square().mean())
    assert errors == sorted(errors, reverse=True)


# ---- ReSTE


REFERENCE = {  # x -> gradient of the authors' code at o = 3, which was run
    2.0: 0.0,
    1.5: 0.254,
    1.0: 0.333,
    0.5: 0.529,
    0.1: 4.642,
    0.05: 4.642,
    0.0: 4.642,
}


def test_reste_reproduces_the_references_gradients():
    x = torch.tensor(list(REFERENCE), requires_grad=True)
    binarize(x, ReSTE(o=3)).sum().backward()
    assert x.grad.tolist() == pytest.approx(list(REFERENCE.values()), abs=5e-4)


@pytest.mark.parametrize(
    ("o", "plateau"), [(1, 1), (2, 3.1622777), (3, 4.6415888), (5, 6.3095734), (10, 7.9432823)]
)
def test_the_plateau_is_the_secant_and_the_slope_falls_by_o_behind_it(o, plateau):
    estimator = ReSTE(o=o)
    at_m, behind = estimator.slope(torch.tensor([0.1, 0.1 + 1e-8], dtype=torch.float64))
    assert at_m.item() == pytest.approx(plateau, rel=1e-6)
    assert at_m.item() == pytest.approx((0.1 ** (1 / o)) / 0.1, rel=1e-6)
    assert (at_m / behind).item() == pytest.approx(o, rel=1e-5)
    assert estimator.slope(torch.tensor([1.5, 1.5001])).tolist()[1] == 0


def test_reste_begins_as_the_straight_through_estimator_cut_at_t():
    x = grid()
    assert torch.equal(ReSTE().slope(x), ClippedSTE(1.5).slope(x))
    assert torch.equal(ReSTE().value(x), x)


def test_reste_with_a_large_o_is_the_sign():
    x = grid(0.01)
    assert torch.allclose(ReSTE(o=1e6).value(x), x.sign(), atol=1e-4)


def test_reste_is_rational_it_is_never_further_from_the_sign_than_the_identity():
    x = grid()
    for o in (1.5, 3, 10):
        distance = (ReSTE(o=o).value(x) - torch.where(x >= 0, 1.0, -1.0)).abs()
        assert (distance <= (x - torch.where(x >= 0, 1.0, -1.0)).abs() + 1e-12).all()


@pytest.mark.parametrize(
    ("o", "error", "gain", "spread"),
    [
        (1, 0.636, 0.866, 0.34),
        (2, 0.392, 0.811, 0.77),
        (3, 0.295, 0.801, 1.17),
        (10, 0.112, 0.796, 2.11),
    ],
)
def test_error_gain_and_spread_on_a_normal_input(o, error, gain, spread):
    """Values of an independent exact integration; gains by Stein's identity near E|z| = 0.798."""
    z = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(400_000) + 0.5).double() / 400_000)
    estimator = ReSTE(o=o)
    distance = estimator.value(z) - torch.where(z >= 0, 1.0, -1.0)
    assert distance.square().mean().sqrt().item() == pytest.approx(error, abs=2e-3)
    assert estimator.slope(z).mean().item() == pytest.approx(gain, abs=2e-3)
    assert estimator.slope(z).std().item() == pytest.approx(spread, abs=1e-2)


def test_the_schedule_is_slow_at_first_and_reaches_its_end():
    estimator = ReSTE(o_end=3)
    found = []
    for progress in (0, 0.5, 1):
        estimator.schedule(progress)
        found.append(estimator.o.item())
    assert found == pytest.approx([1, 3 - math.sqrt(2), 3])


def test_relative_bounds_move_with_the_tensor():
    estimator, z = ReSTE(o=3, relative=True), torch.randn(1000)
    z = (z - z.mean()) / z.std(correction=0)
    absolute = ReSTE(o=3)
    assert torch.allclose(estimator.slope(z), absolute.slope(z), rtol=1e-3)
    # a tenth of the spread: the same entries on the plateau and behind the cut
    small = estimator.slope(z / 10)
    assert torch.equal(small == 0, absolute.slope(z) == 0)
    assert torch.equal(small == small.max(), absolute.slope(z) == absolute.slope(z).max())
    assert estimator.slope(torch.full((3,), 2.0)).isfinite().all()


def test_the_gain_control_has_restes_plateau():
    x = torch.linspace(-1.5, 1.5, 7)
    assert torch.allclose(GainSTE(o=3).slope(x), ReSTE(o=3).slope(torch.zeros(7)))


def test_a_number_can_be_put_into_the_state():
    estimator = ReSTE()
    estimator.o = 2.5
    assert isinstance(estimator.o, torch.Tensor)
    assert estimator.o.item() == 2.5
    estimator.note = 3.0  # what is no state stays what it is
    assert estimator.note == 3.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClippedSTE(0), "c must be above 0, got 0"),
        (lambda: SwishSign(-1), "b must be above 0, got -1"),
        (lambda: DSQ(1.0), r"alpha must be in \(0, 1\), got 1.0"),
        (lambda: EDE(0), "t_min must be above 0, got 0"),
        (lambda: EDE(1, 0.5), "t_max must be at least t_min, got 0.5"),
        (lambda: RBNN(-1), "t_min must be above 0, got -1"),
        (lambda: FDA(n_start=-1), "n_start must be at least 0, got -1"),
        (lambda: FDA(n_start=5, n_end=4), "n_end must be at least n_start, got 4"),
        (lambda: FDA(omega=0), "omega must be above 0, got 0"),
        (lambda: ReSTE(0.5), "o_end must be at least 1, got 0.5"),
        (lambda: ReSTE(o=math.nan), "o must be at least 1, got nan"),
        (lambda: ReSTE(m=0), "m must be above 0, got 0"),
        (lambda: ReSTE(t=0.05), "t must be above m, got 0.05"),
        (lambda: GainSTE(o_end=0), "o_end must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
