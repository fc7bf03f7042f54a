"""A residue as a rigid frame, and a chain as many of them: `Frames`.

The frame of a residue sits in its C-alpha and turns with the plane of N, CA, C:

    e0 = unit(C - CA)      e1 = unit of (N - CA) made orthogonal to e0      e2 = e0 x e1
    R = [e0 e1 e2] (columns)      atom = R p + CA

with idealised positions `p` of the atoms in the frame. The oxygen is not part of the rigid group:
it lies in the plane of the peptide bond, opposite to the middle of its neighbours CA and N(i+1),

    O = C + 1.23 unit(unit(C - CA) + unit(C - N(i+1)))

Conventions: Angstrom; positions are those of the C-alphas; quaternions (w, x, y, z); atoms in the
order N, CA, C, O, CB along their own axis.

References: Yim et al., "SE(3) diffusion model with application to protein backbone generation",
2023, arXiv:2302.02277, appendix I; Engh and Huber, "Accurate bond and angle parameters for X-ray
protein structure refinement", 1991 (idealised values).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.protein.quaternion import (
    matrix_to_quaternion,
    quaternion_to_matrix,
    rotate,
)

ATOMS = ("N", "CA", "C", "O", "CB")
# of alanine in its frame, Angstrom: N-CA 1.461, N-CA-C 111.07 degrees (Engh and Huber, 1991)
IDEAL_N = (-0.525, 1.363, 0.0)
IDEAL_C = (1.526, 0.0, 0.0)
IDEAL_CB = (-0.529, -0.774, -1.205)
C_O = 1.23  # length of the double bond, Angstrom

_EPSILON = 1e-8  # squared Angstrom, inside square roots: two atoms in one place have a frame too


@dataclass(frozen=True)
class Frames:
    """Rigid frames of residues: the state of a flow.

    Attributes:
        translations: positions of the C-alphas, Angstrom.
        quaternions: rotations, unit quaternions (w, x, y, z).

    Example:
        >>> frames = Frames(torch.zeros(8, 3), torch.tensor([1.0, 0, 0, 0]).expand(8, 4))
        >>> len(frames), frames.atoms().shape
        (8, torch.Size([8, 5, 3]))
    """

    translations: Float[Tensor, "*batch 3"]
    quaternions: Float[Tensor, "*batch 4"]

    def __len__(self) -> int:
        """Entries of the first axis: chains of a batch, or residues of one chain."""
        return len(self.translations)

    def __getitem__(self, index: slice | int | Tensor) -> Frames:
        """Some entries of the first axis."""
        return Frames(self.translations[index], self.quaternions[index])

    def to(self, device: torch.device | str | torch.dtype) -> Frames:
        """The same on another device, or in another precision."""
        return Frames(self.translations.to(device), self.quaternions.to(device))

    def detach(self) -> Frames:
        """The same, cut off from the graph of gradients."""
        return Frames(self.translations.detach(), self.quaternions.detach())

    def matrices(self) -> Float[Tensor, "*batch 3 3"]:
        """Rotations as matrices, the axes as columns."""
        return quaternion_to_matrix(self.quaternions)

    def atoms(self) -> Float[Tensor, "*batch 5 3"]:
        """Idealised N, CA, C, O, CB, Angstrom; the axis before the last must be the chain's."""
        return frames_to_atoms(self)

    def centred(self) -> Frames:
        """Moved so that the mean C-alpha of each chain is the origin."""
        return Frames(
            self.translations - self.translations.mean(-2, keepdim=True), self.quaternions
        )


def atoms_to_frames(atoms: Float[Tensor, "*batch atoms 3"]) -> Frames:
    """Frames of residues from their N, CA, C (what comes after is not looked at).

    Args:
        atoms: Angstrom; the axis before the last in the order N, CA, C.

    Returns:
        Frames in the precision of `atoms`, computed in float64.

    Example:
        >>> frame = atoms_to_frames(torch.tensor([IDEAL_N, (0.0, 0.0, 0.0), IDEAL_C]))
        >>> frame.quaternions.round(decimals=6).tolist()
        [1.0, 0.0, 0.0, 0.0]
    """
    n, ca, c = atoms[..., :3, :].double().unbind(-2)
    e0 = _unit(c - ca)
    towards_n = n - ca
    e1 = _unit(towards_n - (towards_n * e0).sum(-1, keepdim=True) * e0)
    rotation = torch.stack((e0, e1, torch.linalg.cross(e0, e1)), -1)
    return Frames(atoms[..., 1, :], matrix_to_quaternion(rotation).to(atoms.dtype))


def frames_to_atoms(frames: Frames) -> Float[Tensor, "*batch 5 3"]:
    """Idealised N, CA, C, O, CB of chains, Angstrom.

    Args:
        frames: the axis before the last of their tensors is the chain's. The last residue has no
            successor: its oxygen is put where N - CA says, one of the places that it may have.
    """
    ca = frames.translations
    place = ca.new_tensor([IDEAL_N, IDEAL_C, IDEAL_CB])
    n, c, cb = (rotate(frames.quaternions, at.expand_as(ca)) + ca for at in place)
    return torch.stack((n, ca, c, _oxygens(n, ca, c), cb), -2)


def _oxygens(
    n: Float[Tensor, "*batch residues 3"],
    ca: Float[Tensor, "*batch residues 3"],
    c: Float[Tensor, "*batch residues 3"],
) -> Float[Tensor, "*batch residues 3"]:
    away = torch.cat((c[..., :-1, :] - n[..., 1:, :], (n - ca)[..., -1:, :]), -2)
    return c + C_O * _unit(_unit(c - ca) + _unit(away))


def backbone(frames: Frames) -> Float[Tensor, "*batch 3 3"]:
    """Idealised N, CA, C alone, with gradients: what the auxiliary losses compare.

    Example:
        >>> frames = Frames(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]))
        >>> backbone(frames)[0, 2].round(decimals=3).tolist()
        [1.526..., 0.0, 0.0]
    """
    place = frames.translations.new_tensor([IDEAL_N, (0.0, 0.0, 0.0), IDEAL_C])
    turned = place @ quaternion_to_matrix(frames.quaternions).mT
    return turned + frames.translations[..., None, :]


def _unit(v: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    return v / (v.square().sum(-1, keepdim=True) + _EPSILON).sqrt()
