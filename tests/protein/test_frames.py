"""Frames: the published construction, back to atoms, and what idealising costs."""

from __future__ import annotations

import pytest
import torch

from rectified.protein import quaternion as Q
from rectified.protein.frames import (
    C_O,
    IDEAL_C,
    IDEAL_CB,
    IDEAL_N,
    Frames,
    atoms_to_frames,
    backbone,
    frames_to_atoms,
)

from .conftest import helix


def some_frames(*shape: int) -> Frames:
    generator = torch.Generator().manual_seed(0)
    places = 10 * torch.randn(*shape, 3, generator=generator)
    return Frames(places, Q.uniform(*shape, generator=generator))


def test_the_axes_are_those_of_the_definition():
    atoms = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    n, ca, c, _ = atoms.unbind(1)
    e0 = (c - ca) / (c - ca).norm(dim=-1, keepdim=True)
    u = n - ca
    e1 = u - (u * e0).sum(-1, keepdim=True) * e0
    e1 = e1 / e1.norm(dim=-1, keepdim=True)
    expected = torch.stack((e0, e1, torch.linalg.cross(e0, e1)), -1)
    found = atoms_to_frames(atoms)
    torch.testing.assert_close(found.matrices(), expected, atol=1e-6, rtol=0)
    assert torch.equal(found.translations, ca)


def test_atoms_of_frames_give_the_frames_back():
    frames = some_frames(3, 20)
    back = atoms_to_frames(frames_to_atoms(frames))
    assert Q.distance(back.quaternions, frames.quaternions).max() < 1e-5
    torch.testing.assert_close(back.translations, frames.translations)


def test_bonds_and_angles_are_ideal():
    atoms = frames_to_atoms(some_frames(20))
    n, ca, c, o, cb = atoms.unbind(-2)
    for a, b, length in ((n, ca, 1.461), (ca, c, 1.526), (c, o, C_O), (ca, cb, 1.527)):
        torch.testing.assert_close(
            (a - b).norm(dim=-1), torch.full((20,), length), atol=2e-3, rtol=0
        )


def test_a_chain_with_ideal_residues_is_kept_to_a_hundredth():
    atoms = helix(30)
    back = frames_to_atoms(atoms_to_frames(atoms))
    torch.testing.assert_close(back[:-1, :4], atoms[:-1], atol=0.02, rtol=0)


def test_the_oxygen_lies_opposite_to_its_neighbours():
    atoms = frames_to_atoms(atoms_to_frames(helix(5)))
    c, o = atoms[0, 2], atoms[0, 3]
    unit = lambda v: v / v.norm()  # noqa: E731
    away = unit(unit(c - atoms[0, 1]) + unit(c - atoms[1, 0]))
    torch.testing.assert_close(o, c + C_O * away, atol=1e-4, rtol=0)


def test_atoms_turn_and_move_with_their_chain():
    frames, turn = some_frames(2, 12), Q.uniform(generator=torch.Generator().manual_seed(5))
    shift = torch.tensor([1.0, -2.0, 3.0])
    moved = Frames(
        Q.rotate(turn, frames.translations) + shift, Q.multiply(turn, frames.quaternions)
    )
    expected = Q.rotate(turn, frames.atoms()) + shift
    torch.testing.assert_close(moved.atoms(), expected, atol=1e-4, rtol=0)


def test_the_backbone_is_the_first_three_atoms_and_has_gradients():
    frames = some_frames(4, 6)
    torch.testing.assert_close(backbone(frames), frames.atoms()[..., :3, :], atol=1e-5, rtol=0)
    q = frames.quaternions.clone().requires_grad_()
    backbone(Frames(frames.translations, q)).square().sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_degenerate_atoms_have_a_finite_frame():
    assert atoms_to_frames(torch.zeros(1, 3, 3)).quaternions.isfinite().all()


def test_centring_selecting_and_moving_to_a_type():
    frames = some_frames(3, 7).centred()
    assert frames.translations.mean(1).abs().max() < 1e-5
    assert len(frames[1:]) == 2
    assert frames.to(torch.float64).translations.dtype == torch.float64
    assert not frames.detach().quaternions.requires_grad


@pytest.mark.parametrize("place", [IDEAL_N, IDEAL_C, IDEAL_CB])
def test_ideal_places_are_a_bond_away(place):
    assert 1.4 < torch.tensor(place).norm() < 1.6
