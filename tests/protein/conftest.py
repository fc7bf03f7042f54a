"""What several tests of proteins share: a helix, a small network, and data made from both."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from rectified.protein.chains import Chain
from rectified.protein.frames import IDEAL_C, IDEAL_N
from rectified.protein.model import FlowModel, ModelSizes

SMALL = ModelSizes(
    node=32,
    pair=16,
    position=16,
    time=16,
    feature=8,
    hidden=8,
    heads=4,
    query_points=3,
    value_points=5,
    blocks=3,
)


def awake(model: FlowModel, seed: int = 0) -> FlowModel:
    """The network with weights where it begins with zeros: a fresh one returns its input."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.detach().any():
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def small_model() -> FlowModel:
    torch.manual_seed(0)
    return awake(FlowModel(SMALL)).eval()


def chain_from_torsions(
    count: int, phi: float, psi: float, omega: float = 180.0
) -> Float[Tensor, "residues 4 3"]:
    """A chain with ideal bonds and angles, and the same torsions (degrees) everywhere."""
    atoms = [torch.tensor(place).double() for place in (IDEAL_N, (0.0, 0.0, 0.0), IDEAL_C)]
    bonds = {"N": (1.329, 116.6), "CA": (1.461, 121.7), "C": (1.526, 111.07)}
    for _ in range(count - 1):
        for name, torsion in (("N", psi), ("CA", omega), ("C", phi)):
            length, angle = bonds[name]
            atoms.append(_placed(atoms[-3:], length, math.radians(angle), math.radians(torsion)))
    backbone = torch.stack(atoms).unflatten(0, (count, 3))
    n_next = torch.cat((backbone[1:, 0], backbone[-1:, 2] + 1.3))
    unit = lambda v: v / v.norm(dim=-1, keepdim=True)  # noqa: E731
    c, ca = backbone[:, 2], backbone[:, 1]
    oxygen = c + 1.23 * unit(unit(c - ca) + unit(c - n_next))
    whole = torch.cat((backbone, oxygen[:, None]), 1)
    return (whole - whole[:, 1].mean(0)).float()


def _placed(last: list[Tensor], length: float, angle: float, torsion: float) -> Tensor:
    a, b, c = last
    along = (c - b) / (c - b).norm()
    normal = torch.linalg.cross(b - a, along)
    normal = normal / normal.norm()
    side = torch.linalg.cross(normal, along)
    turn = math.cos(torsion) * side + math.sin(torsion) * normal
    return c + length * (-math.cos(angle) * along + math.sin(angle) * turn)


def helix(count: int) -> Float[Tensor, "residues 4 3"]:
    return chain_from_torsions(count, -57.0, -47.0)


def strand(count: int) -> Float[Tensor, "residues 4 3"]:
    return chain_from_torsions(count, -120.0, 130.0)


def chain(atoms: Tensor, name: str = "made_A", cluster: int = -1) -> Chain:
    return Chain(name, atoms, torch.arange(1, len(atoms) + 1), "A" * len(atoms), cluster)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes and types are not checked, as for a user: wrong ones must meet our own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
