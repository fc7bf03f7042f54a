"""One list of properties for every estimator of the table."""

import math
from functools import partial

import pytest
import torch

from rectified import binary
from rectified.binary import (
    DSQ,
    EDE,
    FDA,
    RBNN,
    ClippedSTE,
    Estimator,
    GainSTE,
    ReSTE,
    SwishSign,
    binarize,
    estimators,
)
from rectified.binary.estimators import ESTIMATORS, Surrogate
from rectified.errors import UserError

MAKERS = [make for row in ESTIMATORS.values() for make in (row.weights, row.activations) if make]
ALL = {type(make()).__name__: type(make()) for make in MAKERS}
ALL["RBNN activations"] = partial(RBNN, activations=True)
SCHEDULED = {name for name, make in ALL.items() if make().state_dict()}
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


def test_these_estimators_change_over_training():
    assert {"EDE", "RBNN", "RBNN activations", "FDA", "ReSTE", "GainSTE"} == SCHEDULED


def test_the_table_has_every_estimator():
    exported = [getattr(estimators, name) for name in estimators.__all__]
    classes = {one for one in exported if isinstance(one, type) and issubclass(one, Surrogate)}
    assert classes - {Surrogate} == {type(make()) for make in MAKERS}
    assert all(getattr(binary, one.__name__) is one for one in classes)


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
