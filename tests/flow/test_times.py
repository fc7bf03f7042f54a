"""Time laws: what is drawn is what the density says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from rectified.errors import UserError
from rectified.flow import Discrete
from rectified.flow.times import (
    TIMES,
    EDMLogNormal,
    EndpointMass,
    Exponential,
    LogitNormal,
    TimeDistribution,
    UShaped,
    uniform,
)
from tests.flow.oracles import named

LAWS = {
    **{name: law for name, law in TIMES.items() if not isinstance(law, EndpointMass)},
    "u_shaped(1)": UShaped(1.0),
    "logit_normal(-0.5, 0.7)": LogitNormal(-0.5, 0.7),
    "exponential to the source": Exponential(3.0),
    "exponential to the target": Exponential(3.0, "target"),
}
every_law = pytest.mark.parametrize("name", LAWS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@every_law
def test_a_density_integrates_to_one(name):
    def density(t):
        return float(LAWS[name].density(torch.tensor([t], dtype=torch.float64)))

    assert integrate.quad(density, 0, 1)[0] == pytest.approx(1, abs=1e-7)


@every_law
def test_draws_follow_their_density(name):
    law, count = LAWS[name], 100_000
    drawn = law(count, generator())
    assert drawn.shape == (count,)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    fine = torch.linspace(0, 1, 20 * 200 + 1, dtype=torch.float64)
    middles = 0.5 * (fine[1:] + fine[:-1])
    expected = law.density(middles).reshape(20, 200).mean(1) / 20 * count
    seen = torch.histogram(drawn.double(), edges).hist
    # chi squared with 19 degrees of freedom: above this once in 10^5 laws that are right
    assert float(((seen - expected) ** 2 / expected).sum()) < stats.chi2.isf(1e-5, 19)


@every_law
def test_outside_of_time_there_is_no_density(name):
    assert LAWS[name].density(torch.tensor([-0.1, 1.1])).tolist() == [0, 0]


@pytest.mark.parametrize("law", [*LAWS.values(), Discrete(4), EndpointMass(uniform)], ids=named)
def test_draws_are_those_of_the_generator(law):
    assert isinstance(law, TimeDistribution)
    assert torch.equal(law(100, generator(3)), law(100, generator(3)))
    assert not torch.equal(law(100, generator(3)), law(100, generator(4)))
    torch.manual_seed(7)
    without = law(100)
    torch.manual_seed(7)
    assert torch.equal(law(100), without)


def test_the_u_has_the_heights_of_rfpp_s_code():
    ends_and_middle = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    found = UShaped(4.0).density(ends_and_middle)
    assert found.tolist() == pytest.approx([2.07, 0.55, 2.07], abs=0.005)
    assert found[0] / found[1] == pytest.approx(math.cosh(2))


def test_the_u_is_rfpp_s_exponential_law_and_its_mirror_image():
    """Its code draws from a e^(a u) / (e^a - 1), SciPy's truncated exponential; mirrors half."""
    t = np.linspace(0.01, 0.99, 50)
    law = stats.truncexpon(4, scale=1 / 4)  # falling from 0
    mirrored = 0.5 * (law.pdf(t) + law.pdf(1 - t))
    torch.testing.assert_close(
        UShaped(4.0).density(torch.from_numpy(t)), torch.from_numpy(mirrored)
    )


def test_a_logit_normal_law_is_scipy_s():
    t = np.linspace(0.01, 0.99, 50)
    logits = np.log(t / (1 - t))
    wanted = stats.norm(-0.5, 0.7).pdf(logits) / (t * (1 - t))
    found = LogitNormal(-0.5, 0.7).density(torch.from_numpy(t))
    torch.testing.assert_close(found, torch.from_numpy(wanted))


def test_edm_s_noise_levels_are_log_normal():
    t = EDMLogNormal(-1.2, 1.2)(100_000, generator()).double()
    log_sigma = torch.log((1 - t) / t)
    assert log_sigma.mean() == pytest.approx(-1.2, abs=0.02)
    assert log_sigma.std() == pytest.approx(1.2, abs=0.02)


def test_the_favoured_end_is_the_one_that_is_named():
    assert Exponential(4.0, "source")(10_000, generator()).mean() < 0.3
    assert Exponential(4.0, "target")(10_000, generator()).mean() > 0.7


@pytest.mark.parametrize("mass", [0.0, 0.3, 1.0])
def test_a_share_of_the_draws_is_exactly_at_the_source(mass):
    law = EndpointMass(UShaped(), mass)
    share = float((law(100_000, generator()) == 0).double().mean())
    assert share == pytest.approx(mass, abs=0.01)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    assert torch.trapezoid(law.density(t), t) == pytest.approx(1 - mass, abs=1e-4)


def test_discrete_times_are_the_starts_of_equal_steps_alike():
    drawn = Discrete(4)(40_000, generator())
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [0, 0.25, 0.5, 0.75]
    assert counts.double().div(40_000).tolist() == pytest.approx([0.25] * 4, abs=0.01)
    assert (Discrete(1)(100) == 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UShaped(0.0), "a must be positive, got 0.0"),
        (lambda: UShaped(math.inf), "a must be positive, got inf"),
        (lambda: UShaped(math.nan), "a must be positive, got nan"),
        (lambda: LogitNormal(0.0, -1.0), "deviation must be positive, got -1.0"),
        (lambda: EDMLogNormal(deviation=0.0), "deviation must be positive"),
        (lambda: Exponential(-1.0), "a must be positive, got -1.0"),
        (lambda: EndpointMass(uniform, 1.5), r"mass must be in \[0, 1\], got 1.5"),
        (lambda: Discrete(0), "k must be at least 1, got 0"),
        (
            lambda: EndpointMass(Discrete(2)).density(torch.zeros(1)),
            "Discrete has no density",
        ),
    ],
)
def test_impossible_laws_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_end_is_refused():
    with pytest.raises(UserError, match="unknown end 'middle'; choose from source, target"):
        Exponential(4.0, "middle")
