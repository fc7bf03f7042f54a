"""Sampling: the reference's steps, the exact ones, and what the sampler promises."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rectified.errors import UserError
from rectified.protein import quaternion as Q
from rectified.protein.frames import Frames, atoms_to_frames
from rectified.protein.sampling import frame_step, rotation_share, sample
from rectified.protein.se3_flow import prior

from .conftest import helix


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Oracle(torch.nn.Module):
    """Knows the answer, and writes down what it is asked."""

    def __init__(self, clean: Frames) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.clean, self.asked, self.previous = clean, [], []

    def forward(self, frames, t, *, previous=None):
        self.asked.append(float(t[0]))
        self.previous.append(previous)
        return self.clean


def target(count: int = 2, length: int = 12) -> Frames:
    one = atoms_to_frames(helix(length)).centred()
    return Frames(one.translations.expand(count, -1, -1), one.quaternions.expand(count, -1, -1))


def reference_sample(model, noise: Frames, steps: int) -> Frames:
    """The reference's sampler, line by line, with its arc cosine and its stale last time."""

    def slerp(t, q1, q0):
        q1 = torch.where((q0 * q1).sum(-1, keepdim=True) < 0, -q1, q1)
        relative = Q.multiply(Q.conjugate(q0), q1)
        phi = 2 * relative[..., :1].clamp(-1 + 1e-6, 1 - 1e-6).acos()
        u = relative[..., 1:] / (phi / 2).sin()
        step = torch.cat(((t * phi / 2).cos(), (t * phi / 2).sin() * u), -1)
        q = Q.multiply(q0, step)
        return q / q.norm(dim=-1, keepdim=True)

    ts = torch.linspace(0.01, 1, steps)
    x, q, before = noise.translations, noise.quaternions, None
    for i in range(steps - 1):
        t, delta = ts[i], ts[i + 1] - ts[i]
        clean = model(Frames(x, q), t.expand(len(noise)), previous=before)
        before = clean.translations
        x = x + (clean.translations - x) / (1 - t) * delta
        q = slerp(10 * delta, clean.quaternions, q)
    return model(Frames(x, q), ts[steps - 2].expand(len(noise)), previous=before)


@pytest.mark.parametrize("steps", [5, 10, 30])
def test_euler_steps_are_the_references(small_model, steps):
    noise = prior(2, 14, generator=generator())
    ours = sample(small_model, 2, 14, steps=steps, rot_step="euler", noise=noise).frames
    with torch.no_grad():
        theirs = reference_sample(small_model, noise, steps).centred()
    torch.testing.assert_close(ours.translations, theirs.translations, atol=5e-3, rtol=1e-3)
    assert Q.distance(ours.quaternions, theirs.quaternions).max() < 5e-3


@pytest.mark.parametrize(("rot_step", "last"), [("euler", 0.89), ("exact", 0.99), ("linear", 0.99)])
def test_the_last_time_is_stale_in_the_references_steps_alone(rot_step, last):
    model = Oracle(target())
    sample(model, 2, 12, steps=10, rot_step=rot_step, generator=generator())
    assert len(model.asked) == 10
    assert model.asked[0] == pytest.approx(0.01)
    assert model.asked[-1] == pytest.approx(last)


def test_predictions_are_shown_to_the_next_evaluation():
    model = Oracle(target())
    sample(model, 2, 12, steps=4, generator=generator())
    assert model.previous[0] is None
    assert all(one is model.clean.translations for one in model.previous[1:])


@pytest.mark.parametrize("rot_step", ["exact", "linear"])
def test_steps_go_straight_to_a_fixed_prediction(rot_step):
    model = Oracle(target())
    made = sample(
        model, 2, 12, steps=20, rot_step=rot_step, generator=generator(), keep_states=True
    )
    way = [Q.distance(one.quaternions, model.clean.quaternions).max() for one in made.states]
    assert all(after <= before + 1e-5 for before, after in itertools.pairwise(way))
    torch.testing.assert_close(
        made.states[-2].translations, model.clean.translations, atol=1e-4, rtol=0
    )
    assert len(made.states) == 21


def test_few_euler_steps_overshoot_and_exact_ones_do_not():
    clean = target()
    start = prior(2, 12, generator=generator())
    t0, t1 = torch.tensor(0.01), torch.tensor(0.2575)  # the first of 5 steps

    def predict(_state: Frames, _t: torch.Tensor) -> Frames:
        return clean

    left = {}
    for rule in ("euler", "exact"):
        q = frame_step(rule)(predict, start, t0, t1).quaternions
        left[rule] = Q.between(q, clean.quaternions)
    whole = Q.between(start.quaternions, clean.quaternions)
    small = whole.norm(dim=-1) < math.pi / 2  # further ones come round the other way
    torch.testing.assert_close(left["euler"][small], -1.475 * whole[small], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(left["exact"], math.exp(-2.475) * whole, atol=1e-4, rtol=1e-3)


def test_exact_and_euler_steps_agree_when_steps_are_small():
    t0, t1 = torch.tensor(0.3), torch.tensor(0.3001)
    euler, exact = (float(rotation_share(t0, t1, rule)) for rule in ("euler", "exact"))
    assert exact == pytest.approx(euler, rel=1e-3)
    assert exact < euler


def test_one_generator_gives_one_sample(small_model):
    first, second = (sample(small_model, 2, 10, steps=3, generator=generator(7)) for _ in range(2))
    assert torch.equal(first.frames.translations, second.frames.translations)
    assert first.states == ()
    given = sample(small_model, 2, 10, steps=3, noise=first.noise)
    assert torch.equal(given.frames.translations, first.frames.translations)
    assert first.frames.translations.mean(1).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("count", "length", "steps", "message"),
    [
        (0, 10, 5, "count must be at least 1, got 0"),
        (1, 0, 5, "length must be at least 2, got 0"),
        (1, 10, 1, "steps must be at least 2, got 1"),
    ],
)
def test_impossible_samples_are_refused(small_model, count, length, steps, message):
    with pytest.raises(UserError, match=message):
        sample(small_model, count, length, steps=steps)


def test_an_unknown_rule_is_refused(unchecked):
    with pytest.raises(
        UserError, match="unknown rot_step 'heun'; choose from exact, euler, linear"
    ):
        frame_step("heun")  # type: ignore[arg-type]
