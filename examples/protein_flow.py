"""A flow of protein backbones in a few lines: learn helices, then make some in ten steps.

python examples/protein_flow.py
"""

import math
from pathlib import Path

import torch

from rectified.protein import (
    Chain,
    ChainBatches,
    FlowModel,
    FrameLoss,
    ModelSizes,
    measure,
    pdb_text,
    sample,
)
from rectified.training import FitConfig, fit

RESIDUES = 16
# N, CA, C, O of an alpha helix: radius, angle in degrees, height (100 degrees, 1.5 A a residue)
helix = torch.tensor([[1.55, -27.5, -0.9], [2.28, 0, 0], [1.66, 26.4, 1.08], [2.0, 24.5, 2.3]])
step = torch.arange(RESIDUES)[:, None]
radius, height = helix[:, 0], helix[:, 2] + 1.5 * step
angle = (helix[:, 1] + 100 * step) * math.pi / 180
atoms = torch.stack((radius * angle.cos(), radius * angle.sin(), height), -1)
chain = Chain("helix_A", atoms, torch.arange(1, RESIDUES + 1), "A" * RESIDUES)
print(f"the chain: {measure(atoms).ca_bond_valid:.0%} of the CA-CA distances are valid")

torch.manual_seed(0)
model = FlowModel(ModelSizes(node=48, pair=16, position=16, time=16, feature=8, hidden=8, blocks=2))
batches = ChainBatches([chain] * 64, 8, crop=None, seed=0)
settings = FitConfig(
    epochs=60, optimizer="adamw", learning_rate=1e-2, schedule="cosine", clip=1.0, device="cpu"
)
losses = fit(model, FrameLoss(bonds=10), batches, settings)
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {60 * len(batches)} steps")

made = sample(model, 4, RESIDUES, steps=10, generator=torch.Generator().manual_seed(1))
found = measure(made.frames.atoms())
print(
    f"samples: {found.ca_bond_valid.mean():.0%} valid, {found.clashes_per_100.mean():.1f} clashes"
)
Path("helix.pdb").write_text(pdb_text([made.frames.atoms()[0]]))
print("the first is in helix.pdb")
