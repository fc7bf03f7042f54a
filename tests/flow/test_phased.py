"""Phased rectification: what it must equal, and where its loss must vanish."""

import pytest
import torch

from rectified.errors import UserError
from rectified.flow import (
    Field,
    FlowMatching,
    Phased,
    Term,
    integrate,
    natural_euler,
    predictions,
    straight,
    uniform_grid,
)
from rectified.flow.couplings import independent
from rectified.flow.losses import element_huber, squared
from rectified.flow.paths import DDPM, edm, scaled_linear_betas, sub_vp, vp_cosine, vp_linear
from rectified.flow.phased import follow, phase_endpoints
from rectified.flow.predictions import Endpoints

PATHS = {
    "straight": straight,
    "vp_cosine": vp_cosine,
    "vp_linear": vp_linear,
    "sub_vp": sub_vp,
    "edm": edm,
    "stable diffusion": DDPM(scaled_linear_betas()),
}
BOUNDED = (predictions.velocity, predictions.v_prediction, predictions.target)


def generator():
    return torch.Generator().manual_seed(0)


def first_order(path, predicts):
    """A perfect first-order model: the pair is x1 = 2 x0 + 1, so a point tells both its ends."""

    def network(x, t):
        c = path.coefficients(t).like(x)
        x0 = (x - c.a) / (2 * c.a + c.b)
        return predicts.of(Endpoints(x0, 2 * x0 + 1), t, path)

    return network


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("phases", [1, 3, 4])
def test_a_perfect_first_order_model_has_no_loss(path, phases):
    network = first_order(path, predictions.target)
    teacher = Field(network, path, predictions.target)
    x1 = torch.randn(200, 3, dtype=torch.float64, generator=generator())
    loss = Phased(teacher, phases, steps=3, loss=squared, generator=generator())(network, (x1,))
    assert loss < 1e-16


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_end_points_of_a_phase_give_back_its_ends(path):
    start, end = torch.randn(2, 50, 3, dtype=torch.float64, generator=generator()).unbind()
    for phase in range(4):
        s, e = (torch.full((50,), (phase + i) / 4, dtype=torch.float64) for i in (0, 1))
        ends = phase_endpoints(path, start, end, s, e)
        torch.testing.assert_close(path(ends.x0, ends.x1, s)[0], start)
        torch.testing.assert_close(path(ends.x0, ends.x1, e)[0], end)


def test_the_source_of_a_phase_is_the_papers_noise():
    path = PATHS["stable diffusion"]
    start, end = torch.randn(2, 20, 3, dtype=torch.float64, generator=generator()).unbind()
    s, e, t = torch.tensor([0.25, 0.5, 0.3], dtype=torch.float64)
    ends = phase_endpoints(path, start, end, s, e)
    at_s, at_e, at_t = (path.coefficients(time) for time in (s, e, t))
    nsr_s, nsr_e, nsr_t = (c.b / c.a for c in (at_s, at_e, at_t))
    noise = (end / at_e.a - start / at_s.a) / (nsr_e - nsr_s)  # the reference code's
    torch.testing.assert_close(ends.x0, noise)
    x = at_t.a * (start / at_s.a + (nsr_t - nsr_s) * noise)
    torch.testing.assert_close(path(ends.x0, ends.x1, t)[0], x)
    said = torch.randn(20, 3, dtype=torch.float64, generator=generator())
    arrived = at_e.a * (x / at_t.a + (nsr_e - nsr_t) * said)
    found = predictions.noise.endpoints(said, x, t, path)
    torch.testing.assert_close(path(found.x0, found.x1, e)[0], arrived)


@pytest.mark.parametrize("path", [straight, vp_cosine, vp_linear, PATHS["stable diffusion"]])
@pytest.mark.parametrize("predicts", [predictions.v_prediction, predictions.target])
def test_one_phase_is_rectification_on_the_teachers_pairs(path, predicts):
    def curved(x, t):
        return torch.sin(3 * x) * (1 + t[:, None])

    def student(x, t):
        return torch.cos(x) + t[:, None]

    teacher = Field(curved, path, predicts)
    x1 = torch.randn(64, 2, dtype=torch.float64, generator=generator())
    phased = Phased(teacher, phases=1, steps=5, generator=generator())
    # the same draws, by hand: noise, then the phase, then the time
    draws = generator()
    x0, _ = independent(x1, draws)
    torch.rand(64, generator=draws)
    times = torch.rand(64, generator=draws)
    start = path(x0, x1, torch.zeros(64, dtype=torch.float64))[0]
    end = integrate(teacher, start, uniform_grid(5).double(), natural_euler)[-1]
    c = path.coefficients(torch.zeros((), dtype=torch.float64))
    plain = FlowMatching(None, path, predicts, lambda *_: times, (Term(element_huber, "target"),))
    # what is noise to the pair: all of the start that is not its sample
    wanted = plain(student, ((start - c.a * end) / c.b, end))
    torch.testing.assert_close(phased(student, (x1,)), wanted, rtol=1e-5, atol=1e-7)


def test_following_through_all_phases_is_sampling():
    teacher = Field(lambda x, t: torch.sin(3 * x), vp_linear, predictions.v_prediction)
    x = x0 = torch.randn(10, 2, dtype=torch.float64, generator=generator())
    for phase in range(4):
        s, e = (torch.full((10,), (phase + i) / 4, dtype=torch.float64) for i in (0, 1))
        x = follow(teacher, x, s, e, 2)
    whole = integrate(teacher, x0, uniform_grid(8).double(), natural_euler)[-1]
    torch.testing.assert_close(x, whole)


def test_times_lie_in_the_phase_that_they_belong_to():
    objective = Phased(Field(lambda x, t: x), phases=4, generator=generator())
    s, e, t = objective._phase(torch.zeros(2000, 1))
    assert bool(((s <= t) & (t <= e)).all())
    torch.testing.assert_close(e - s, torch.full_like(s, 0.25))
    assert [round(float(one), 2) for one in s.unique()] == [0.0, 0.25, 0.5, 0.75]


def test_labels_guide_the_teacher_and_are_dropped_for_the_student_alone():
    seen = []

    def teacher(x, t, labels):
        seen.append(labels)
        return torch.zeros_like(x)

    def student(x, t, labels):
        assert (labels == -1).all()
        return torch.zeros_like(x)

    objective = Phased(Field(teacher), phases=2, steps=1, guidance=2.0, label_drop=1.0)
    objective(student, (torch.zeros(4, 2), torch.arange(4)))
    assert torch.equal(seen[0], torch.tensor([-1, -1, -1, -1, 0, 1, 2, 3]))


def test_pairs_may_be_given():
    teacher = Field(lambda x, t: torch.ones_like(x))
    objective = Phased(teacher, phases=2, steps=1, coupling=None)
    x0 = torch.zeros(8, 2)
    assert objective(lambda x, t: torch.ones_like(x), (x0, x0 + 1)) < 1e-6


def test_a_student_may_have_another_path_and_prediction():
    network = first_order(vp_cosine, predictions.velocity)
    teacher = Field(first_order(vp_linear, predictions.noise), vp_linear, predictions.noise)
    objective = Phased(teacher, 4, 2, path=vp_cosine, predicts=predictions.velocity, loss=squared)
    x1 = torch.randn(100, 2, dtype=torch.float64, generator=generator())
    assert objective(network, (x1,)) < 1e-10


def test_gradients_reach_the_student_and_not_the_teacher():
    teacher, student = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    objective = Phased(Field(lambda x, t: teacher(x)), phases=2, steps=2)
    objective(lambda x, t: student(x), (torch.randn(8, 2, generator=generator()),)).backward()
    assert teacher.weight.grad is None
    assert student.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"phases": 0}, "phases must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"label_drop": 1.5}, r"label_drop must be in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_numbers_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        Phased(Field(lambda x, t: x), **options)
