"""Losses: formulas, limits, gradients, and what only their difference can tell."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from rectified.errors import UserError
from rectified.flow import Perceptual, Term, rfpp_terms
from rectified.flow.losses import PseudoHuber, lpips, mean_loss, norm, squared
from tests.flow.oracles import normal


def two_layers(x):
    return [x, torch.stack([x[:, 0] ** 2, x[:, 1], x[:, 0] * x[:, 1]], 1)]


LOSSES = {
    "squared": squared,
    "norm": norm,
    "huber": PseudoHuber(),
    "huber, d": PseudoHuber(scale="d"),
    "huber, elements": PseudoHuber(1e-3, "none", "element"),
    "perceptual": Perceptual(two_layers),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
def test_a_loss_is_one_number_a_point_and_zero_only_where_equal(name):
    one, other = normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1)
    found = LOSSES[name](one, other)
    assert found.shape == (4,)
    assert (found > 0).all()
    torch.testing.assert_close(LOSSES[name](one, one), torch.zeros(4).double(), atol=1e-12, rtol=0)


@every_loss
def test_gradients_are_finite_where_nothing_is_wrong(name):
    """The root of 0 has no derivative: a zero-initialised network may well begin there."""
    point = torch.zeros(3, 2, dtype=torch.float64).requires_grad_()
    LOSSES[name](point, torch.zeros(3, 2, dtype=torch.float64)).sum().backward()
    assert torch.isfinite(point.grad).all()


@every_loss
def test_gradients_are_finite_differences(name):
    wanted = normal(3, 2, seed=1)
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, wanted), normal(3, 2).requires_grad_(), eps=1e-6
    )


def test_squared_and_norm_are_means_over_dimensions():
    one, other = normal(4, 2, 3), normal(4, 2, 3, seed=1)
    wanted = torch.stack([((a - b) ** 2).mean() for a, b in zip(one, other, strict=True)])
    torch.testing.assert_close(squared(one, other), wanted)
    torch.testing.assert_close(norm(one, other), wanted.sqrt())


@pytest.mark.parametrize("scale", ["sqrt_d", "d", "none"])
def test_a_pseudo_huber_is_its_formula(scale):
    one, other, d = normal(4, 2, 3), normal(4, 2, 3, seed=1), 6
    c = 0.5 * {"sqrt_d": math.sqrt(d), "d": d, "none": 1}[scale]
    length = (one - other).flatten(1).norm(dim=1)
    found = PseudoHuber(0.5, scale)(one, other)
    torch.testing.assert_close(found, (torch.sqrt(length**2 + c**2) - c) / d)
    found = PseudoHuber(0.5, scale, "element")(one, other)
    error = (one - other).flatten(1)
    torch.testing.assert_close(found, (torch.sqrt(error**2 + c**2) - c).mean(1))


def test_a_pseudo_huber_is_quadratic_near_and_the_norm_far():
    zero, near, far = torch.zeros(1, 4).double(), 1e-4 * normal(1, 4), 1e4 * normal(1, 4)
    loss = PseudoHuber(1.0, "none")
    assert float(loss(near, zero)) == pytest.approx(float(near.square().sum() / 8), rel=1e-6)
    assert float(loss(far, zero)) == pytest.approx(float(far.norm() / 4), rel=1e-3)


def test_the_two_published_widths_differ_by_the_root_of_d():
    x, zero, d = normal(5, 64), torch.zeros(5, 64).double(), 64
    theirs = PseudoHuber(0.00054, "d")(x, zero)
    torch.testing.assert_close(theirs, PseudoHuber(0.00054 * math.sqrt(d), "sqrt_d")(x, zero))
    # and at the size of an error neither matters: 0.00054 * 64 against a norm of 8
    torch.testing.assert_close(theirs, PseudoHuber()(x, zero), rtol=0.01, atol=0)


def test_perceptual_is_lpips_formula_with_any_network():
    one, other = normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1)
    wanted = torch.zeros(4).double()
    for weight, f, g in zip((0.3, 0.7), two_layers(one), two_layers(other), strict=True):
        f, g = (torch.nn.functional.normalize(layer, dim=1) for layer in (f, g))
        wanted += weight * ((f - g) ** 2).sum(1).mean((1, 2))
    found = Perceptual(two_layers, (0.3, 0.7))(one, other)
    torch.testing.assert_close(found, wanted)
    by_default = Perceptual(two_layers)(one, other)
    torch.testing.assert_close(by_default, Perceptual(two_layers, (0.5, 0.5))(one, other))


def test_perceptual_does_not_see_the_length_of_features():
    one = normal(4, 2, 3, 3)
    loss = Perceptual(lambda x: [x])
    torch.testing.assert_close(loss(5 * one, one), torch.zeros(4).double(), atol=1e-12, rtol=0)


def test_dead_features_have_a_gradient():
    """Where no channel of a ReLU fires, features are 0 and so is their length."""
    x = torch.tensor([[[[-1.0, 1.0]]]]).requires_grad_()
    loss = Perceptual(lambda x: [torch.relu(torch.cat([x, 2 * x], 1))])
    loss(x, torch.ones(1, 1, 1, 2)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_no_gradient_goes_to_what_is_wanted():
    wanted = normal(2, 2).requires_grad_()
    assert not Perceptual(two_layers)(normal(2, 2, seed=1), wanted).requires_grad


# ---- terms


def test_a_mean_loss_is_the_weighed_mean_of_its_terms():
    one, other, t = normal(4, 2), normal(4, 2, seed=1), torch.linspace(0, 1, 4).double()
    terms = (Term(squared), Term(norm, "target", lambda t: t**2))
    asked = []
    found = mean_loss(terms, lambda space: asked.append(space) or (one, other), t)
    wanted = squared(one, other).mean() + (t**2 * norm(one, other)).mean()
    torch.testing.assert_close(found, wanted)
    assert asked == ["prediction", "target"]


def test_rfpp_without_a_perceptual_term_is_pseudo_huber_at_all_times_alike():
    (term,) = rfpp_terms(None)
    assert term.loss == PseudoHuber()
    assert (term.space, term.weight) == ("velocity", None)


@pytest.mark.parametrize("by_time", [True, False])
def test_rfpp_s_terms_are_those_of_its_configurations(by_time):
    """(1 - s) huber + w lpips / s (F) or + w lpips (E), s = 1 - t."""
    huber, perceptual = rfpp_terms(norm, weight=2.0, by_time=by_time)
    t = torch.tensor([0.0, 0.25, 0.75, 1.0])
    s = (1 - t).clamp(min=1e-3)
    torch.testing.assert_close(huber.weight(t), 1 - (1 - t))
    torch.testing.assert_close(perceptual.weight(t), 2 / s if by_time else torch.full((4,), 2.0))
    assert (huber.space, perceptual.space) == ("velocity", "target")
    assert rfpp_terms(norm, huber=PseudoHuber(0.1))[0].loss == PseudoHuber(0.1)


# ---- LPIPS itself


def test_lpips_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r"LPIPS is not at hand \(.*\): pip install lpips"):
        lpips()


def test_lpips_is_the_package_s_network_frozen(monkeypatch):
    class Network(torch.nn.Linear):
        def __init__(self, net, verbose):
            super().__init__(4, 1)
            self.net = net

        def forward(self, one, other):
            return super().forward((one - other).abs().flatten(1))[:, :, None, None]

    package = type(sys)("lpips")
    package.LPIPS = Network
    monkeypatch.setitem(sys.modules, "lpips", package)
    one = torch.randn(3, 1, 2, 2).requires_grad_()
    found = lpips("alex")(one, torch.zeros(3, 1, 2, 2))
    assert found.shape == (3,)
    found.sum().backward()
    assert one.grad is not None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PseudoHuber(0.0), "width must be positive, got 0.0"),
        (lambda: PseudoHuber(1.0, "cubic"), "unknown scale 'cubic'"),
        (lambda: PseudoHuber(1.0, "d", "batch"), "unknown reduction 'batch'"),
        (lambda: Term(squared, "latent"), "unknown space 'latent'; choose from prediction"),
        (
            lambda: Perceptual(two_layers, (1.0,))(torch.zeros(2, 2), torch.zeros(2, 2)),
            "weights must be one a layer, got 1 for 2 layers",
        ),
    ],
)
def test_impossible_losses_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
