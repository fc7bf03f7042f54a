import pytest
import torch

from rectified.binary import ReSTE, binarize


class Halved:
    """Anybody's estimator: no module, no base class."""

    def value(self, x, /):
        return x / 2

    def slope(self, x, /):
        return torch.full_like(x, 0.5)


def test_the_sign_is_exactly_one_or_minus_one_and_one_at_zero():
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.0, -3.0, torch.inf, -torch.inf])
    assert binarize(x, ReSTE()).tolist() == [1, 1, 1, -1, 1, -1, 1, -1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_type_stays(dtype):
    x = torch.randn(5).to(dtype).requires_grad_()
    y = binarize(x, ReSTE())
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype


def test_an_estimator_can_be_anything_with_a_value_and_a_slope():
    x = torch.randn(4, requires_grad=True)
    (3 * binarize(x, Halved())).sum().backward()
    assert x.grad.tolist() == [1.5] * 4


def test_the_slope_is_not_computed_where_nobody_wants_a_gradient():
    class Unwanted(Halved):
        def slope(self, x, /):
            raise AssertionError

    with torch.no_grad():
        assert binarize(torch.zeros(1, requires_grad=True), Unwanted()).item() == 1


def test_it_runs_under_vmap():
    x = torch.randn(3, 4)

    def loss(row):
        return binarize(row, ReSTE(o=2)).sum()

    gradients = torch.vmap(torch.func.grad(loss))(x)
    assert torch.allclose(gradients, ReSTE(o=2).slope(x))
