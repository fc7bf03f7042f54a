"""Flow matching: what its minimiser is, and what every choice changes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.flow import (
    PREDICTIONS,
    Discrete,
    FlowMatching,
    MinibatchOT,
    Term,
    WithinClass,
    predictions,
    rfpp_terms,
    straight,
    transport_cost,
)
from rectified.flow.couplings import Given
from rectified.flow.losses import SPACES, PseudoHuber, squared
from rectified.flow.paths import PATHS, along
from rectified.flow.predictions import Endpoints
from tests.flow.oracles import GaussianFlow, normal


class Fixed(nn.Module):
    """Says what it is given, and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, x, t, *labels):
        self.asked.append((x, t, *labels))
        return self.answer(x, t) if callable(self.answer) else self.answer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=64):
    return normal(count, 3), normal(count, 3, seed=1) + 0.5


@pytest.mark.parametrize("path", ["straight", "vp_cosine", "vp_linear"])
@pytest.mark.parametrize("kind", ["velocity", "v_prediction", "noise", "target", "edm"])
def test_the_minimiser_is_the_conditional_mean(kind, path):
    """Among all affine functions of x at one time, least squares finds E[. | x_t = x]."""
    exact, t, count = GaussianFlow(PATHS[path]), 0.4, 50_000
    x0 = normal(count, 1)
    x1 = exact.mean + exact.deviation * normal(count, 1, seed=1)
    x, _ = PATHS[path](x0, x1, torch.tensor(t).double())
    wanted = PREDICTIONS[kind].of(Endpoints(x0, x1), torch.tensor(t).double(), PATHS[path])
    slope, shift = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x)], 1), wanted).solution
    probe = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    true = exact.network(PREDICTIONS[kind])(probe, torch.full((3,), t).double())
    torch.testing.assert_close(probe * slope + shift, true, atol=0.05, rtol=0.03)

    # and no other network has a smaller loss
    def loss(shift, stretch):
        def answer(x, t):
            return stretch * exact.network(PREDICTIONS[kind])(x, t) + shift

        return FlowMatching(
            None, PATHS[path], PREDICTIONS[kind], times=lambda n, _: torch.full((n,), t)
        )(Fixed(answer), (x0, x1))

    best = float(loss(0.0, 1.0))
    assert all(float(loss(s, f)) > best for s, f in ((0.1, 1.0), (-0.1, 1.0), (0, 0.9), (0, 1.1)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_perfect_prediction_costs_nothing_in_any_space(kind, path):
    x0, x1 = batch(8)
    t = torch.linspace(0.1, 0.9, 8)
    true = PREDICTIONS[kind].of(Endpoints(x0, x1), t.double(), PATHS[path])
    for space in SPACES:
        objective = FlowMatching(
            None, PATHS[path], PREDICTIONS[kind], lambda *_: t, (Term(squared, space),)
        )
        assert float(objective(Fixed(true), (x0, x1))) == pytest.approx(0, abs=1e-12), space


@pytest.mark.parametrize("path", ["straight", "vp_cosine", "vp_linear", "sub_vp", "ddpm"])
def test_between_spaces_an_error_of_noise_has_known_weights(path):
    """(b / a) e on the target, (W / a) e on the velocity (section 4.6 of the theory's notes)."""
    x0, x1 = batch(16)
    t, error = torch.linspace(0.2, 0.9, 16).double(), 0.1 * normal(16, 3, seed=2)
    c = PATHS[path].coefficients(t)
    weights = {
        "prediction": torch.ones(16).double(),
        "noise": torch.ones(16).double(),
        "target": c.b / c.a,
        "velocity": c.wronskian / c.a,
    }
    for space, weight in weights.items():
        objective = FlowMatching(
            None, PATHS[path], predictions.noise, lambda *_: t, (Term(squared, space),)
        )
        found = objective(Fixed(x0 + error), (x0, x1))
        wanted = (weight**2 * error.square().mean(1)).mean()
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9, msg=space)


def test_an_error_of_the_velocity_counts_b_over_w_on_the_target():
    x0, x1 = batch(16)
    t, error = torch.linspace(0.1, 0.9, 16).double(), 0.1 * normal(16, 3, seed=2)
    objective = FlowMatching(None, times=lambda *_: t, terms=(Term(squared, "target"),))
    found = objective(Fixed(x1 - x0 + error), (x0, x1))
    torch.testing.assert_close(found, ((1 - t) ** 2 * error.square().mean(1)).mean())


@pytest.mark.parametrize("by_time", [True, False])
def test_rfpp_s_objective_is_its_formula_by_hand(by_time):
    """With s = 1 - t: (1 - s) huber(v, x1 - x0) + w / s m(x + s v, x1)."""
    x0, x1 = batch(16)
    t = torch.linspace(0.05, 0.95, 16).double()
    v = normal(16, 3, seed=2)
    s = along(1 - t, x0)
    x = (1 - s) * x1 + s * x0

    def premetric(one, other):
        return (one - other).abs().sum(1)

    c = 0.00054 * 3**0.5
    huber = (torch.sqrt((v - (x1 - x0)).square().sum(1) + c**2) - c) / 3
    weight = 0.7 / s[:, 0] if by_time else 0.7
    wanted = ((1 - s[:, 0]) * huber + weight * premetric(x + s * v, x1)).mean()
    objective = FlowMatching(
        None,
        times=lambda *_: t,
        terms=rfpp_terms(premetric, weight=0.7, by_time=by_time),
    )
    torch.testing.assert_close(objective(Fixed(v), (x0, x1)), wanted)


def test_rectified_diffusion_s_loss_is_an_elementwise_huber_on_the_target():
    path = PATHS["scaled_linear"]
    x0, x1 = batch(16)
    t = torch.linspace(0.2, 0.9, 16).double()
    output = x0 + 0.1 * normal(16, 3, seed=2)
    a, b = (along(value, x0) for value in path.coefficients(t)[:2])
    error = (a * x1 + b * x0 - b * output) / a - x1
    wanted = (torch.sqrt(error**2 + 1e-6) - 1e-3).mean()
    objective = FlowMatching(
        None,
        path,
        predictions.noise,
        lambda *_: t,
        (Term(PseudoHuber(1e-3, "none", "element"), "target"),),
    )
    torch.testing.assert_close(objective(Fixed(output), (x0, x1)), wanted)


def test_points_between_are_asked_for_at_the_times_of_the_law():
    x0, x1 = batch(8)
    network = Fixed(x1 - x0)
    FlowMatching(None, times=Discrete(1))(network, (x0, x1))
    ((x, t),) = network.asked
    assert torch.equal(x, x0)
    assert t.dtype == x0.dtype
    assert (t == 0).all()


def test_the_coupling_finds_the_source_points():
    x1 = normal(32, 3) + 0.5
    network = Fixed(torch.zeros(32, 3).double())
    objective = FlowMatching(MinibatchOT(), times=Discrete(1), generator=generator(9))
    optimal = objective(network, (x1,))
    independent = FlowMatching(times=Discrete(1), generator=generator(9))(network, (x1,))
    assert optimal < independent
    assert optimal == pytest.approx(transport_cost(network.asked[0][0], x1) / 3)


def test_draws_are_those_of_the_generator():
    x1, network = normal(32, 3), Fixed(torch.zeros(32, 3).double())
    first, again, other = (
        FlowMatching(generator=generator(seed))(network, (x1,)) for seed in (0, 0, 1)
    )
    assert first == again != other
    torch.manual_seed(3)
    by_default = FlowMatching()(network, (x1,))
    torch.manual_seed(3)
    assert FlowMatching()(network, (x1,)) == by_default


# ---- labels


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_labels_is_dropped(share):
    count = 20_000
    x1, labels = torch.zeros(count, 1), torch.arange(count) % 10
    network = Fixed(torch.zeros(count, 1))
    FlowMatching(label_drop=share, generator=generator())(network, (x1, labels))
    ((_, _, seen),) = network.asked
    dropped = seen == -1
    assert float(dropped.double().mean()) == pytest.approx(share, abs=0.01)
    assert torch.equal(seen[~dropped], labels[~dropped])


def test_labels_stay_with_their_pairs():
    x0, x1 = batch(8)
    labels, network = torch.arange(8), Fixed(x1 - x0)
    FlowMatching(None)(network, (x0, x1, labels))
    assert torch.equal(network.asked[0][2], labels)


def test_within_classes_the_coupling_is_told_the_labels():
    x1, labels = normal(32, 3), torch.arange(32) % 2
    network = Fixed(torch.zeros(32, 3).double())
    objective = FlowMatching(WithinClass(MinibatchOT()), generator=generator())
    assert torch.isfinite(objective(network, (x1, labels)))
    with pytest.raises(UserError, match="needs the labels of the batch"):
        objective(network, (x1,))


def test_given_pairs_may_be_a_coupling_too():
    x0, x1 = batch(8)
    network = Fixed(torch.zeros(4, 3).double())
    objective = FlowMatching(Given(x0, x1), straight, times=Discrete(1), generator=generator())
    objective(network, (torch.zeros(4, 3).double(),))
    starts = {tuple(row) for row in x0.tolist()}
    assert all(tuple(row) in starts for row in network.asked[0][0].tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowMatching(terms=()), "terms must hold at least one, got none"),
        (lambda: FlowMatching(label_drop=1.5), r"label_drop must be in \[0, 1\], got 1.5"),
        (
            lambda: FlowMatching(None)(Fixed(torch.zeros(2, 2)), (torch.zeros(2, 2),)),
            r"a batch is \(x0, x1\) or \(x0, x1, labels\), got 1 tensors",
        ),
        (
            lambda: FlowMatching(None)(
                Fixed(torch.zeros(2, 2)), (torch.zeros(2, 2), torch.zeros(2, 3))
            ),
            r"must have one shape, got \(2, 2\) and \(2, 3\)",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_objectives_and_batches_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
