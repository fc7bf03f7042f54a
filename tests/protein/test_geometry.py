"""Geometry: measures of chains whose geometry is known, and of real ones."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from rectified.errors import UserError
from rectified.protein import quaternion as Q
from rectified.protein.folds import (
    diversity,
    helix_and_strand,
    library,
    secondary_structure,
    tm_score,
    tm_scores,
)
from rectified.protein.geometry import (
    angle,
    dihedral,
    histogram_distance,
    measure,
    ramachandran,
    rmsd,
    superpose,
    torsions,
)

from .conftest import chain_from_torsions, helix, strand


@pytest.mark.parametrize(("phi", "psi"), [(-57.0, -47.0), (-120.0, 130.0), (60.0, 45.0)])
def test_torsions_are_those_that_the_chain_was_made_with(phi, psi):
    found = torsions(chain_from_torsions(12, phi, psi))
    for values, expected in zip(found, (phi, psi, 180.0), strict=True):
        off = (values.rad2deg() - expected + 180) % 360 - 180
        assert off.abs().max() < 0.1


def test_an_ideal_chain_is_valid_in_every_respect():
    found = measure(helix(30))
    assert found.ca_bond_valid == found.ca_bond_below == found.peptide_valid == found.trans == 1
    assert found.clashes_per_100 == 0
    assert found.peptide_bond == pytest.approx(1.329, abs=1e-3)
    assert found.ca_c_n == pytest.approx(116.6, abs=0.1)
    assert found.c_n_ca == pytest.approx(121.7, abs=0.1)
    assert found.positive_phi == 0
    assert measure(chain_from_torsions(30, 60.0, 45.0)).positive_phi == 1


def test_a_helix_rises_by_one_and_a_half_angstrom_a_residue():
    ca = helix(37)[:, 1]
    assert float((ca[36] - ca[0]).norm()) == pytest.approx(36 * 1.5, abs=3)


def test_bonds_count_both_ways_and_the_references_way():
    atoms = helix(4)
    stretched = atoms * 1.05  # CA-CA 3.99
    shrunk = atoms * 0.95  # 3.61
    assert measure(stretched).ca_bond_valid == measure(stretched).ca_bond_below == 0
    assert measure(shrunk).ca_bond_valid == 0
    assert measure(shrunk).ca_bond_below == 1


def test_clashes_are_pairs_for_every_100_residues():
    atoms = strand(10)
    backward = atoms[0, 1] - atoms[1, 1]
    atoms[9] += atoms[0, 1] - atoms[9, 1] + 2 * backward / backward.norm()
    assert measure(atoms).clashes_per_100 == 10.0


def test_angles_and_dihedrals_are_right_at_singular_points():
    x, o = torch.tensor([1.0, 0, 0]), torch.zeros(3)
    assert angle(x, o, x) == 0
    assert float(angle(x, o, -x)) == pytest.approx(math.pi)
    assert dihedral(o, o, o, o) == 0


def test_superposition_is_scipys():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    b = a + 0.3 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    a, b = a - a.mean(0), b - b.mean(0)
    theirs, distance = Rotation.align_vectors(b.numpy(), a.numpy())
    torch.testing.assert_close(superpose(a, b), torch.from_numpy(theirs.as_matrix().copy()))
    assert float(rmsd(a, b)) == pytest.approx(distance / math.sqrt(20))


def test_deviation_does_not_see_turns_and_moves_but_mirrors():
    a = helix(20)[:, 1]
    turn = Q.uniform(generator=torch.Generator().manual_seed(0))
    assert rmsd(Q.rotate(turn, a) + 5, a) < 1e-4
    assert rmsd(a * torch.tensor([-1.0, 1.0, 1.0]), a) > 1


def test_ramachandran_histograms_tell_a_helix_from_a_strand():
    maps = []
    for atoms in (helix(20), strand(20)):
        phi, psi, _ = torsions(atoms)
        maps.append(ramachandran(phi, psi))
        assert maps[-1].sum() == pytest.approx(1.0)
    assert histogram_distance(maps[0], maps[0]) == 0
    assert histogram_distance(maps[0], maps[1]) == pytest.approx(1)


def test_a_helix_is_a_helix_and_a_strand_a_strand():
    assert secondary_structure(helix(20)[:, 1]).count("a") >= 18
    assert helix_and_strand(strand(20)[:, 1])[1] > 0.8
    assert secondary_structure(helix(4)[:, 1]) == "cccc"  # too short to tell


def test_tm_scores_are_1_for_equal_chains_and_small_for_others():
    a, b = helix(40)[:, 1], strand(40)[:, 1]
    turn = Q.uniform(generator=torch.Generator().manual_seed(0))
    assert tm_score(a, Q.rotate(turn, a) + 3) == pytest.approx(1, abs=1e-4)
    assert tm_score(a, b) < 0.4
    half = torch.cat((a[:30], b[:10] - b[0] + a[29] + 3))
    assert 0.6 < tm_score(a, half) < 1
    scores = tm_scores([a, b, a])
    mean, clusters = diversity(scores)
    assert clusters == pytest.approx(2 / 3)
    assert 0.3 < mean < 0.7


def test_what_cannot_be_compared_is_refused(unchecked):
    with pytest.raises(UserError, match="chains must have one length, got 5 and 6 residues"):
        tm_score(helix(5)[:, 1], helix(6)[:, 1])
    with pytest.raises(UserError, match="diversity needs at least 2 chains, got 1"):
        diversity(torch.eye(1))


def test_a_missing_library_is_told_in_one_line():
    with pytest.raises(UserError, match=r'pip install "rectified\[protein\]"'):
        library("no_such_library_at_all")
