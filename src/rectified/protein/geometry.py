"""The geometry of backbones: bonds, angles, torsions, clashes, size.

Atoms come as N, CA, C, ... along the axis before the last, residues along the one before that, and
any axes of chains in front. Lengths are Angstrom, angles radians. What a real chain has:

    CA-CA 3.80 (trans peptide bond), C-N 1.329, CA-C-N 116.6 and C-N-CA 121.7 degrees, omega near
    pi, no two C-alphas nearer than 3.0, radius of gyration near 2.2 n^0.38

References: Engh and Huber, 1991 (bonds and angles); Skolnick, Kolinski and Ortiz, "MONSSTER", 1997
(radius of gyration); Ramachandran, Ramakrishnan and Sasisekharan, 1963.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CA_CA, C_N = 3.8, 1.329  # Angstrom; trans peptide bonds
TOLERANCE = 0.1  # within which a bond counts as valid, both ways
REFERENCE_LIMIT = 3.902  # CA-CA below which the reference calls a bond valid, one way
CLASH = 3.0  # C-alphas nearer than this, not neighbours, do not occur in real chains
_BINS = 24  # of a turn, in a Ramachandran histogram: 15 degrees

Atoms = Float[Tensor, "*chains residues atoms 3"]


def ca_distances(atoms: Atoms) -> Float[Tensor, "*chains bonds"]:
    """Distances of neighbouring C-alphas.

    Example:
        >>> atoms = torch.zeros(2, 3, 3); atoms[1, :, 0] = 3.8
        >>> ca_distances(atoms).tolist()
        [3.799...]
    """
    return atoms[..., 1, :].diff(dim=-2).norm(dim=-1)


def peptide_bonds(atoms: Atoms) -> Float[Tensor, "*chains bonds"]:
    """Lengths of the bonds C(i)-N(i+1)."""
    return (atoms[..., 1:, 0, :] - atoms[..., :-1, 2, :]).norm(dim=-1)


def angle(
    a: Float[Tensor, "*batch 3"], b: Float[Tensor, "*batch 3"], c: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch"]:
    """The angle at `b`, in [0, pi].

    Example:
        >>> x, o, y = torch.eye(3)[0], torch.zeros(3), torch.eye(3)[1]
        >>> round(math.degrees(angle(x, o, y)), 3)
        90.0
    """
    u, v = a - b, c - b
    return torch.atan2(torch.linalg.cross(u, v).norm(dim=-1), (u * v).sum(-1))


def dihedral(
    a: Float[Tensor, "*batch 3"],
    b: Float[Tensor, "*batch 3"],
    c: Float[Tensor, "*batch 3"],
    d: Float[Tensor, "*batch 3"],
) -> Float[Tensor, "*batch"]:
    """The torsion about b-c in (-pi, pi]: 0 where a and d are on one side (IUPAC's sign).

    Example:
        >>> points = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1]])
        >>> round(math.degrees(dihedral(*points)), 3)
        90.0
    """
    along = c - b
    m = torch.linalg.cross(b - a, along)
    n = torch.linalg.cross(along, d - c)
    y = (torch.linalg.cross(m, n) * along).sum(-1) / along.norm(dim=-1).clamp(min=1e-12)
    return torch.atan2(y, (m * n).sum(-1))


def torsions(
    atoms: Atoms,
) -> tuple[Float[Tensor, "*chains n"], Float[Tensor, "*chains n"], Float[Tensor, "*chains m"]]:
    """phi and psi of all residues but the first and the last, and omega of every bond."""
    n, ca, c = atoms[..., :3, :].unbind(-2)
    phi = dihedral(c[..., :-1, :], n[..., 1:, :], ca[..., 1:, :], c[..., 1:, :])
    psi = dihedral(n[..., :-1, :], ca[..., :-1, :], c[..., :-1, :], n[..., 1:, :])
    omega = dihedral(ca[..., :-1, :], c[..., :-1, :], n[..., 1:, :], ca[..., 1:, :])
    return phi[..., :-1], psi[..., 1:], omega


def clashes_per_100(atoms: Atoms) -> Float[Tensor, "*chains"]:
    """Pairs of C-alphas nearer than 3 Angstrom, neighbours not counted, for every 100 residues."""
    ca = atoms[..., 1, :]
    count = ca.shape[-2]
    near = torch.cdist(ca, ca, compute_mode="donot_use_mm_for_euclid_dist") < CLASH
    return near.triu(2).sum((-1, -2)) * (100.0 / count)


def radius_of_gyration(atoms: Atoms) -> Float[Tensor, "*chains"]:
    """Root mean square distance of the C-alphas from their mean, Angstrom."""
    ca = atoms[..., 1, :]
    return (ca - ca.mean(-2, keepdim=True)).square().sum(-1).mean(-1).sqrt()


@dataclass(frozen=True)
class Geometry:
    """Measures of chains; shares in [0, 1], one value per chain.

    Attributes:
        ca_bond_valid: CA-CA within 3.8 +- 0.1.
        ca_bond_below: CA-CA below 3.902, the reference's one-sided count.
        peptide_valid: C-N within 1.329 +- 0.1.
        peptide_bond: mean C-N, Angstrom.
        ca_c_n: mean angle at C, degrees.
        c_n_ca: mean angle at N, degrees.
        trans: peptide bonds with |omega| above 150 degrees.
        positive_phi: residues with phi above 0: glycines and errors.
        clashes_per_100: C-alphas too near, for every 100 residues.
        radius_of_gyration: Angstrom.
        compactness: the same over 2.2 n^0.38, that of a typical globular chain.
    """

    ca_bond_valid: Float[Tensor, "*chains"]
    ca_bond_below: Float[Tensor, "*chains"]
    peptide_valid: Float[Tensor, "*chains"]
    peptide_bond: Float[Tensor, "*chains"]
    ca_c_n: Float[Tensor, "*chains"]
    c_n_ca: Float[Tensor, "*chains"]
    trans: Float[Tensor, "*chains"]
    positive_phi: Float[Tensor, "*chains"]
    clashes_per_100: Float[Tensor, "*chains"]
    radius_of_gyration: Float[Tensor, "*chains"]
    compactness: Float[Tensor, "*chains"]


def measure(atoms: Atoms) -> Geometry:
    """All measures of chains of one length, at least three residues each."""
    ca, cn = ca_distances(atoms), peptide_bonds(atoms)
    phi, _, omega = torsions(atoms)
    c, n = atoms[..., :-1, 2, :], atoms[..., 1:, 0, :]
    size = radius_of_gyration(atoms)
    return Geometry(
        ca_bond_valid=_share((ca - CA_CA).abs() <= TOLERANCE),
        ca_bond_below=_share(ca < REFERENCE_LIMIT),
        peptide_valid=_share((cn - C_N).abs() <= TOLERANCE),
        peptide_bond=cn.mean(-1),
        ca_c_n=angle(atoms[..., :-1, 1, :], c, n).mean(-1).rad2deg(),
        c_n_ca=angle(c, n, atoms[..., 1:, 1, :]).mean(-1).rad2deg(),
        trans=_share(omega.abs() > math.radians(150)),
        positive_phi=_share(phi > 0),
        clashes_per_100=clashes_per_100(atoms),
        radius_of_gyration=size,
        compactness=size / (2.2 * atoms.shape[-3] ** 0.38),
    )


def _share(holds: Tensor) -> Tensor:
    return holds.float().mean(-1)


def ramachandran(phi: Float[Tensor, "*n"], psi: Float[Tensor, "*n"]) -> Float[Tensor, "phi psi"]:
    """The share of residues in each square of 15 x 15 degrees; rows phi, columns psi, from -pi."""
    place = torch.stack((phi.flatten(), psi.flatten()), -1).double().cpu()
    edges = torch.linspace(-math.pi, math.pi, _BINS + 1, dtype=torch.float64)
    cells = (torch.bucketize(place, edges) - 1).clamp(0, _BINS - 1)
    counts = torch.zeros(_BINS * _BINS, dtype=torch.float64)
    counts.index_add_(0, cells[:, 0] * _BINS + cells[:, 1], torch.ones(len(cells)).double())
    return (counts / max(1, len(cells))).unflatten(0, (_BINS, _BINS)).float()


def histogram_distance(a: Float[Tensor, "*n"], b: Float[Tensor, "*n"]) -> float:
    """Total variation of two histograms: 0 for equal ones, 1 for disjoint ones.

    Example:
        >>> histogram_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
        0.5
    """
    return float((a - b).abs().sum() / 2)


def superpose(
    moving: Float[Tensor, "*batch n 3"], fixed: Float[Tensor, "*batch n 3"]
) -> Float[Tensor, "*batch 3 3"]:
    """The rotation that brings centred points nearest to others in the mean square (Kabsch).

    Args:
        moving: centred points.
        fixed: the others, in the same order, centred too.

    Returns:
        R, so that `moving @ R.mT` lies on `fixed`.

    Example:
        >>> points = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 2, 0], [0, -2, 0]])
        >>> turned = points @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
        >>> torch.allclose(turned @ superpose(turned, points).mT, points, atol=1e-6)
        True
    """
    u, _, vt = torch.linalg.svd(moving.mT.double() @ fixed.double())
    sign = torch.det(u) * torch.det(vt)  # a rotation is wanted, not a reflection
    flip = torch.stack((torch.ones_like(sign), torch.ones_like(sign), sign), -1)
    return (vt.mT * flip[..., None, :] @ u.mT).to(moving.dtype)


def rmsd(a: Float[Tensor, "*batch n 3"], b: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*batch"]:
    """Root mean square deviation after superposition, Angstrom.

    The reference's function of this name returns the mean deviation, which is never larger.
    """
    a, b = a - a.mean(-2, keepdim=True), b - b.mean(-2, keepdim=True)
    return (a @ superpose(a, b).mT - b).square().sum(-1).mean(-1).sqrt()
