"""Fields: a network as a velocity, under conditions, and carried to other paths."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.flow import PREDICTIONS, Field, predictions, reflow, straight
from rectified.flow.fields import NO_CLASS
from rectified.flow.paths import PATHS, along, edm, vp_linear
from rectified.models import VelocityResMLP
from rectified.training import FitConfig
from tests.flow.oracles import GaussianFlow, normal

INSIDE = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_whatever_is_predicted_the_velocity_is_one(kind, name):
    exact = GaussianFlow(PATHS[name])
    x = normal(len(INSIDE), 2)
    field = Field(exact.network(PREDICTIONS[kind]), PATHS[name], PREDICTIONS[kind])
    wanted = exact(x, INSIDE)
    torch.testing.assert_close(field(x, INSIDE), wanted, rtol=1e-8, atol=1e-8)
    for found, true in zip(field.endpoints(x, INSIDE), exact.endpoints(x, INSIDE), strict=True):
        torch.testing.assert_close(found, true, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(PATHS, 2)))
def test_on_another_path_it_is_the_field_that_was_learnt_there(old, new):
    """Where both paths pass the same mixtures: conditional means do not know the path."""
    field = Field(
        GaussianFlow(PATHS[old]).network(predictions.v_prediction),
        PATHS[old],
        predictions.v_prediction,
    ).on(PATHS[new])
    exact, x = GaussianFlow(PATHS[new]), normal(len(INSIDE), 2)
    c = PATHS[new].coefficients(INSIDE)
    ends = PATHS[old].coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    ratios = ends.a / ends.b.clamp(min=1e-300)
    shared = (c.a / c.b > ratios[0]) & (c.a / c.b < ratios[1])
    assert shared.sum() >= 10
    for found, true in (
        (field(x, INSIDE), exact(x, INSIDE)),
        (field.endpoints(x, INSIDE).x1, exact.endpoints(x, INSIDE).x1),
        (field.endpoints(x, INSIDE).x0, exact.endpoints(x, INSIDE).x0),
    ):
        torch.testing.assert_close(found[shared], true[shared], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(PATHS, 2)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_another_path_both_ends_are_finite(old, new, dtype):
    exact = GaussianFlow(PATHS[old])
    field = Field(exact.network(predictions.v_prediction), PATHS[old], predictions.v_prediction).on(
        PATHS[new]
    )
    x = PATHS[new].start(normal(2, 3).to(dtype))
    assert torch.isfinite(field(x, torch.tensor([0.0, 1.0], dtype=dtype))).all()


def test_edm_carried_to_the_straight_path_is_rfpp_s_initialisation():
    """sigma = s / (1 - s), D at x / (1 - s), v = (x - D) / s, with s = 1 - t."""

    def f(x, t):  # any network
        return torch.tanh(x) + along(t, x)

    found = Field(f, edm, predictions.edm).on(straight)(normal(19, 3), INSIDE)
    x, s = normal(19, 3), along(1 - INSIDE, normal(19, 3))
    sigma, y = s / (1 - s), x / (1 - s)
    time = edm.time(1 / sigma[:, 0])
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / torch.sqrt(0.25 + sigma**2)
    backward = (x - (c_skip * y + c_out * f(y, time))) / s
    torch.testing.assert_close(found, -backward)


def test_a_diffusion_model_s_noise_is_carried_as_proposition_1_says():
    """E[x1 | x_t] = D(x_t (alpha + sigma), r) with sigma_r / alpha_r = s / (1 - s)."""

    def epsilon(x, t):
        return torch.sin(x) + along(t, x)

    found = (
        Field(epsilon, vp_linear, predictions.noise).on(straight).endpoints(normal(19, 3), INSIDE)
    )
    x = normal(19, 3)
    r = vp_linear.time(INSIDE / (1 - INSIDE))
    alpha, sigma = (along(value, x) for value in vp_linear.coefficients(r)[:2])
    y = x * (alpha + sigma)
    torch.testing.assert_close(found.x1, (y - sigma * epsilon(y, r)) / alpha)


def test_the_same_path_changes_nothing():
    exact = GaussianFlow(straight)
    field = Field(exact.network(predictions.velocity))
    x = normal(19, 2)
    torch.testing.assert_close(field.on(straight)(x, INSIDE), exact(x, INSIDE))


class Labelled:
    """Says its label, shifted by the input, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, t, labels):
        self.asked.append((x, t, labels))
        return x + labels[:, None]


def test_guidance_extrapolates_from_no_class():
    network, x, labels = Labelled(), torch.randn(3, 2), torch.tensor([4, 0, 2])
    found = Field(network).given(labels, 2.5).output(x, torch.tensor(0.3))
    without, with_class = x - 1, x + labels[:, None]
    torch.testing.assert_close(found, without + 2.5 * (with_class - without))
    ((points, times, asked),) = network.asked  # both in one call
    assert torch.equal(asked, torch.tensor([NO_CLASS] * 3 + [4, 0, 2]))
    assert torch.equal(points, torch.cat([x, x]))
    assert times.shape == (6,)


@pytest.mark.parametrize(("guidance", "said"), [(0.0, "without"), (1.0, "with")])
def test_guidance_0_is_no_class_and_1_is_the_class_itself(guidance, said):
    network, x, labels = Labelled(), torch.randn(3, 2), torch.tensor([4, 0, 2])
    found = Field(network).given(labels, guidance).output(x, torch.tensor(0.3))
    wanted = x - 1 if said == "without" else x + labels[:, None]
    torch.testing.assert_close(found, wanted)
    assert len(network.asked[0][2]) == (6 if said == "without" else 3)


def test_guidance_without_labels_is_refused():
    with pytest.raises(UserError, match="guidance needs a condition: give labels"):
        Field(lambda x, t: x, guidance=2.0)
    with pytest.raises(UserError, match="got 3"):
        Field(lambda x, t: x).given(None, 3.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("old", "new"), [("edm", "straight"), ("vp_linear", "vp_cosine")])
def test_a_diffusion_model_is_a_flow_to_train_further(old, new, classes):
    """The same velocity, from the same weights; training one does not change the other."""
    torch.manual_seed(0)
    network = VelocityResMLP((2,), 8, 1, classes)
    nn.init.normal_(network.leave[1].weight)
    labels = torch.arange(19) % 3 if classes else None
    field = Field(network, PATHS[old], predictions.v_prediction, labels)
    carried = field.on(PATHS[new])
    start = carried.trainable()
    x = normal(19, 2).float()
    t = INSIDE.float()
    torch.testing.assert_close(start(x, t), carried(x, t))
    pairs = (x, x + 1) if labels is None else (x, x + 1, labels)
    config = FitConfig(1, "adam", 1e-2, device="cpu")
    trained = reflow(start, pairs, config, batch_size=19, updates=3)
    assert trained.path is PATHS[new]
    assert trained.predicts is predictions.velocity
    moved = Field(trained.network.network, PATHS[old], predictions.v_prediction, labels)
    ours = trained if labels is None else trained.given(labels)
    torch.testing.assert_close(moved.on(PATHS[new])(x, t), ours(x, t))
    assert not torch.allclose(ours(x, t), carried(x, t), atol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("field", [Field(lambda x, t: x), Field(lambda x, t: x).on(vp_linear)])
def test_a_time_of_length_1_would_broadcast_in_silence_and_is_refused(field):
    with pytest.raises(UserError, match=r"got shape \(1,\) for 4 points"):
        field(torch.zeros(4, 2), torch.zeros(1))


def test_a_network_sees_one_time_a_point_in_the_points_own_type():
    seen = []
    field = Field(lambda x, t: seen.append(t) or x)
    field(torch.zeros(4, 2, dtype=torch.float64), torch.tensor(0.25))
    assert seen[0].tolist() == [0.25] * 4
    assert seen[0].dtype == torch.float64
