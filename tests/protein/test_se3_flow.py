"""The flow: priors, ways, the loss by hand, and minibatch transport."""

from __future__ import annotations

import math

import pytest
import torch

from rectified.errors import UserError
from rectified.protein import quaternion as Q
from rectified.protein.frames import Frames, atoms_to_frames, backbone
from rectified.protein.se3_flow import (
    SPREAD,
    FrameLoss,
    assign_noise,
    interpolate,
    packed,
    prior,
    training_noise,
)

from .conftest import helix, strand


def data(batch: int = 3, count: int = 12) -> Frames:
    one = atoms_to_frames(helix(count)).centred()
    return Frames(
        one.translations.expand(batch, -1, -1).clone(),
        one.quaternions.expand(batch, -1, -1).clone(),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_is_centred_and_wide_and_its_rotations_uniform():
    noise = prior(200, 60, generator=generator())
    assert noise.translations.mean(1).abs().max() < 1e-4
    assert noise.translations.std() == pytest.approx(SPREAD * math.sqrt(59 / 60), rel=0.01)
    angles = Q.log(noise.quaternions).norm(dim=-1)
    assert angles.mean().rad2deg() == pytest.approx(126.5, abs=1)


def test_training_turns_the_data_by_igso3():
    clean = data(300, 40)
    noise = training_noise(clean, generator=generator())
    angles = Q.distance(noise.quaternions, clean.quaternions)
    assert angles.mean().rad2deg() == pytest.approx(114.97, abs=1)
    assert noise.translations.mean(1).abs().max() < 1e-4


def test_the_way_begins_and_ends_where_it_should_and_is_straight():
    noise, clean = prior(3, 12, generator=generator()), data()
    for t, end in ((0.0, noise), (1.0, clean)):
        found = interpolate(noise, clean, torch.full((3,), t))
        torch.testing.assert_close(found.translations, end.translations, atol=1e-5, rtol=0)
        assert Q.distance(found.quaternions, end.quaternions).max() < 1e-5
    halfway = interpolate(noise, clean, torch.full((3,), 0.5))
    middle = (noise.translations + clean.translations) / 2
    torch.testing.assert_close(halfway.translations, middle)
    whole = Q.between(noise.quaternions, clean.quaternions)
    torch.testing.assert_close(
        Q.between(halfway.quaternions, clean.quaternions), whole / 2, atol=1e-5, rtol=1e-4
    )


def test_every_chain_has_its_own_time():
    noise, clean = prior(3, 12, generator=generator()), data()
    t = torch.tensor([0.1, 0.5, 0.8])
    together = interpolate(noise, clean, t)
    alone = interpolate(noise[1:2], clean[1:2], t[1:2])
    torch.testing.assert_close(together.translations[1:2], alone.translations)


def test_a_perfect_prediction_costs_nothing():
    clean = data()
    noisy = interpolate(prior(3, 12, generator=generator()), clean, torch.full((3,), 0.7))
    loss = FrameLoss(bonds=1.0)
    assert loss.parts(noisy, clean, clean, torch.full((3,), 0.7)).abs().max() < 1e-6


def test_the_loss_is_that_of_the_definition():
    clean, t = data(), torch.tensor([0.1, 0.6, 0.95])
    noisy = interpolate(prior(3, 12, generator=generator()), clean, t)
    q = Q.multiply(clean.quaternions, Q.exp(0.05 * torch.randn(3, 12, 3, generator=generator(1))))
    guess = Frames(clean.translations + 0.1 * torch.randn(3, 12, 3, generator=generator(2)), q)
    found = FrameLoss(bonds=2.0).parts(noisy, guess, clean, t)
    for n in range(3):
        s = 1 - min(float(t[n]), 0.9)
        m = 3 * 12
        x1, x = clean.translations[n], guess.translations[n]
        places = 2 * ((0.1 * (x1 - x) / s) ** 2).sum() / m
        w1 = Q.between(noisy.quaternions[n], clean.quaternions[n])
        w = Q.between(noisy.quaternions[n], guess.quaternions[n])
        rotations = (((w1 - w) / s) ** 2).sum() / m
        a1 = 0.1 * backbone(clean[n]).flatten(0, 1) / s
        a = 0.1 * backbone(guess[n]).flatten(0, 1) / s
        atoms = ((a1 - a) ** 2).sum() / m
        gaps = (a1[:, None] - a1).norm(dim=-1) - (a[:, None] - a).norm(dim=-1)
        pairs = (gaps**2).sum() / (36 * 36 + 1)
        near = torch.stack([gaps[3 * i : 3 * i + 3, 3 * i + 3 : 3 * i + 6] for i in range(11)])
        late = float(t[n]) > 0.25
        expected = [places, rotations, late * (atoms + pairs), late * 2 * (near**2).mean()]
        torch.testing.assert_close(found[:, n], torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_the_first_and_third_part_are_cut_off_without_a_gradient():
    clean, t = data(), torch.full((3,), 0.9)
    noisy = interpolate(prior(3, 12, generator=generator()), clean, t)
    x = (clean.translations + 100).requires_grad_()
    parts = FrameLoss().parts(noisy, Frames(x, clean.quaternions), clean, t)
    assert (parts[0] == 5).all()
    assert (parts[2] == 5).all()
    assert torch.autograd.grad(parts[0].sum() + parts[2].sum(), x)[0].abs().max() == 0


def test_gradients_are_finite_where_prediction_and_data_coincide():
    clean, t = data(), torch.full((3,), 0.5)
    q = clean.quaternions.clone().requires_grad_()
    x = clean.translations.clone().requires_grad_()
    FrameLoss(bonds=1.0).parts(clean, Frames(x, q), clean, t).sum().backward()
    assert x.grad is not None
    assert q.grad is not None
    assert x.grad.isfinite().all()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize(("coin", "calls"), [(0.2, 2), (0.8, 1)])
def test_the_coin_decides_whether_the_network_sees_a_prediction_of_its_own(coin, calls):
    seen = []

    class Copy(torch.nn.Module):
        def forward(self, frames, t, *, index=None, previous=None):
            seen.append(previous)
            return frames

    clean = data()
    noise = prior(3, 12, generator=generator())
    index = torch.arange(12.0).expand(3, 12)
    batch = packed(noise, clean, torch.full((3,), 0.5), index, torch.full((3,), coin))
    loss = FrameLoss()(Copy(), batch)
    assert loss > 0
    assert len(seen) == calls
    assert (seen[-1] is not None) == (calls == 2)


def test_transport_shortens_the_way_and_only_turns_and_permutes_the_noise():
    chains = [helix(20), strand(20), helix(20) * 1.3, strand(20) * 0.5]
    parts = [atoms_to_frames(one).centred() for one in chains]
    clean = Frames(
        torch.stack([p.translations for p in parts]), torch.stack([p.quaternions for p in parts])
    )
    noise = training_noise(clean, generator=generator())
    assigned = assign_noise(noise, clean)
    before = (noise.translations - clean.translations).square().sum()
    assert (assigned.translations - clean.translations).square().sum() < before
    sizes = noise.translations.square().sum((1, 2)).sort().values
    torch.testing.assert_close(assigned.translations.square().sum((1, 2)).sort().values, sizes)
    assert torch.equal(assigned.quaternions, noise.quaternions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotation": -1.0}, "rotation must be at least 0"),
        ({"auxiliary_from": 1.5}, "auxiliary_from must be in"),
        ({"clip": 1.0}, "clip must be in"),
    ],
)
def test_impossible_losses_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        FrameLoss(**change)
