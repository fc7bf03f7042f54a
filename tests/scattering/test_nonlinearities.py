"""Non-linearities: they keep 0, and their constants are sharp."""

from __future__ import annotations

import pytest
import torch

from rectified.errors import UserError
from rectified.scattering import (
    NONLINEARITIES,
    custom_nonlinearity,
    elu,
    leaky_relu,
    modulus,
    relu,
    soft_threshold,
)

ALL = [
    *NONLINEARITIES.values(),
    leaky_relu(0.2),
    leaky_relu(3.0),
    elu(0.5),
    elu(2.0),
    soft_threshold(0.3),
]


def quotients(nonlinearity, x, y):
    return ((nonlinearity(x) - nonlinearity(y)).abs() / (x - y).abs()).max().item()


@pytest.mark.parametrize("nonlinearity", ALL, ids=lambda one: one.name)
def test_no_pair_exceeds_the_constant(nonlinearity):
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 1.0, 20.0):
        x, y = size * torch.randn(2, 50_000, generator=generator, dtype=torch.complex128)
        assert quotients(nonlinearity, x, y) <= nonlinearity.lipschitz * (1 + 1e-12)


@pytest.mark.parametrize("nonlinearity", ALL, ids=lambda one: one.name)
def test_the_constant_is_attained_to_a_thousandth(nonlinearity):
    # both signs: leaky ReLU and ELU with large slopes are steepest below zero
    x = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    assert quotients(nonlinearity, x[1:], x[:-1]) > 0.999 * nonlinearity.lipschitz


@pytest.mark.parametrize("nonlinearity", ALL, ids=lambda one: one.name)
def test_zero_stays_zero(nonlinearity):
    for dtype in (torch.float32, torch.complex128):
        assert nonlinearity(torch.zeros(3, dtype=dtype)).abs().max() == 0


def test_the_modulus_has_the_same_values_with_and_without_gradients():
    z = torch.randn(100, dtype=torch.complex128)
    torch.testing.assert_close(modulus(z), modulus(z.clone().requires_grad_()).detach())


def test_the_gradient_of_the_modulus_is_zero_at_zero():
    z = torch.zeros(3, dtype=torch.complex128, requires_grad=True)
    modulus(z).sum().backward()
    assert z.grad.abs().max() == 0


def test_real_and_imaginary_parts_are_taken_by_themselves():
    z = torch.tensor([1 - 2j, -3 + 4j])
    assert relu(z).tolist() == [1 + 0j, 0 + 4j]


def test_a_known_constant_is_taken_as_exact():
    assert custom_nonlinearity("atan", torch.atan, lipschitz=1.0).is_exact


def test_an_estimated_constant_is_labelled():
    found = custom_nonlinearity("scaled tanh", lambda x: 2 * torch.tanh(3 * x))
    assert found.lipschitz == pytest.approx(6, rel=1e-3)
    assert not found.is_exact


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (torch.sigmoid, "must keep 0 at 0, got 0.5"),
        (torch.square, "must be Lipschitz"),
        (lambda x: x * (x.abs() > 1), "must be Lipschitz"),  # hard threshold
        (torch.sign, "must be Lipschitz"),
        (lambda x: x / (x - 10), "must be finite|must be Lipschitz"),
        (lambda x: torch.where(x.abs() > 50, torch.nan, x), "must be finite"),
    ],
)
def test_functions_that_spoil_the_theory_are_refused(function, message):
    with pytest.raises(UserError, match=message):
        custom_nonlinearity("mine", function)


def test_a_negative_threshold_is_refused():
    with pytest.raises(UserError, match="threshold must be at least 0, got -1"):
        soft_threshold(-1.0)
