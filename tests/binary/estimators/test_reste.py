"""ReSTE against the reference's table, its limits, and the control that has its gain."""

import math

import pytest
import torch

from rectified.binary import ClippedSTE, GainSTE, ReSTE, binarize
from tests.binary.estimators.test_estimators import grid

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
