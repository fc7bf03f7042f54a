"""Likelihood: exact where it is known, unbiased where it is estimated."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from rectified.errors import UserError
from rectified.flow import Field, log_prob, predictions, straight
from rectified.flow.likelihood import Hutchinson, exact_divergence
from rectified.flow.paths import PATHS
from tests.flow.oracles import GaussianFlow, normal


def test_of_a_gaussian_flow_it_is_the_normal_density():
    exact = GaussianFlow(straight)
    x = exact.mean + exact.deviation * normal(20, 3)
    field = Field(exact.network(predictions.velocity))
    wanted = stats.norm(exact.mean, exact.deviation).logpdf(x.numpy()).sum(1)
    found = log_prob(field, x, steps=50)
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("predicts", [predictions.v_prediction, predictions.target])
def test_it_is_the_same_on_every_path(name, predicts):
    """Also where velocities are infinite at the data, or the noise has deviation 80."""
    exact = GaussianFlow(PATHS[name])
    x = exact.mean + exact.deviation * normal(20, 3)
    field = Field(exact.network(predicts), PATHS[name], predicts)
    wanted = stats.norm(exact.mean, exact.deviation).logpdf(x.numpy()).sum(1)
    # noise that the flow begins at still holds a(0) of the data, at most 0.07
    atol = 4 * float(PATHS[name].coefficients(torch.tensor(0.0)).a) if name != "edm" else 0.02
    torch.testing.assert_close(
        log_prob(field, x, steps=100), torch.from_numpy(wanted), rtol=1e-3, atol=max(atol, 1e-3)
    )


def test_the_density_integrates_to_one():
    """A flow that bends, on a grid that holds all of it."""
    line = torch.linspace(-8, 8, 161, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)

    def velocity(x, t):
        return torch.sin(x.flip(1)) * (1 + t) + 0.3 * x

    mass = log_prob(velocity, x, steps=20).exp().sum() * (line[1] - line[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-3)


def test_a_linear_flow_changes_volume_by_the_exponential_of_the_trace():
    """x' = A x: x1 = e^A x0, log p(x1) = log N(e^-A x1) - tr A with any A."""
    generator = torch.tensor([[0.3, -0.8], [0.5, -0.1]], dtype=torch.float64)
    x1 = normal(10, 2)
    x0 = x1 @ torch.matrix_exp(-generator).T
    wanted = -0.5 * x0.square().sum(1) - math.log(2 * math.pi) - generator.trace()
    found = log_prob(lambda x, t: x @ generator.T, x1, steps=40)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


def bent(x, t):
    """Neither linear nor elementwise; any shape of a point."""
    return torch.tanh(x) * x.flatten(1).sum(1).reshape(-1, *(1,) * (x.ndim - 1)) + torch.sin(x) * t


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
def test_the_exact_divergence_is_the_trace_of_the_jacobian(shape):
    x, t = normal(4, *shape), torch.tensor(0.3).double()
    v, found = exact_divergence(bent, x, t)
    torch.testing.assert_close(v, bent(x, t))
    wanted = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda p: bent(p[None], t)[0], row)
            .reshape(row.numel(), row.numel())
            .trace()
            for row in x
        ]
    )
    torch.testing.assert_close(found, wanted)


def test_hutchinson_is_unbiased_within_its_standard_error():
    x, t = normal(4, 3), torch.tensor(0.3).double()
    _, true = exact_divergence(bent, x, t)
    estimate = Hutchinson(torch.Generator().manual_seed(0))
    draws = torch.stack([estimate(bent, x, t)[1] for _ in range(400)])
    error = draws.std(0) / 400**0.5
    assert (error > 0).all()
    assert ((draws.mean(0) - true).abs() < 4 * error).all()


def test_more_probes_are_the_mean_of_single_ones():
    x, t = normal(4, 3), torch.tensor(0.3).double()
    one = Hutchinson(torch.Generator().manual_seed(0))
    alone = torch.stack([one(bent, x, t)[1] for _ in range(5)]).mean(0)
    together = Hutchinson(torch.Generator().manual_seed(0), probes=5)(bent, x, t)[1]
    torch.testing.assert_close(together, alone)


def test_hutchinson_is_exact_where_the_jacobian_is_diagonal():
    x, t = normal(4, 3), torch.tensor(0.3).double()

    def diagonal(x, t):
        return torch.sin(x) * t

    _, found = Hutchinson(torch.Generator().manual_seed(0))(diagonal, x, t)
    torch.testing.assert_close(found, (torch.cos(x) * t).sum(1))


def test_a_likelihood_by_hutchinson_is_near_the_exact_one():
    exact = GaussianFlow(straight)
    x = exact.mean + exact.deviation * normal(20, 3)
    field = Field(exact.network(predictions.velocity))
    estimate = Hutchinson(torch.Generator().manual_seed(0))
    found = log_prob(field, x, steps=20, divergence=estimate)
    torch.testing.assert_close(found, log_prob(field, x, steps=20), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "divergence", [exact_divergence, Hutchinson(torch.Generator().manual_seed(0))]
)
def test_a_velocity_that_does_not_depend_on_x_changes_no_volume(divergence):
    x = normal(3, 2)
    v, found = divergence(lambda x, t: torch.ones_like(x), x, torch.tensor(0.5).double())
    assert torch.equal(v, torch.ones_like(x))
    assert torch.equal(found, torch.zeros(3).double())
    weight = torch.ones(2).double().requires_grad_()  # a gradient, but not to x
    _, found = divergence(lambda x, t: weight.expand_as(x), x, torch.tensor(0.5).double())
    assert torch.equal(found, torch.zeros(3).double())


def test_it_leaves_no_graph_behind():
    layer = torch.nn.Linear(2, 2).double()
    found = log_prob(lambda x, t: layer(x), normal(3, 2), steps=3)
    assert not found.requires_grad


def test_no_probes_are_refused():
    with pytest.raises(UserError, match="probes must be at least 1, got 0"):
        Hutchinson(torch.Generator(), probes=0)
