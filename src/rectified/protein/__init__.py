"""Protein backbones by rectified quaternion flow (ReQFlow).

A residue is a rigid frame; a flow on frames carries noise to backbones. Conventions: Angstrom and
radians, quaternions (w, x, y, z), t = 0 is noise and t = 1 data. `docs/protein.md` begins with an
example.
"""

from rectified.protein.chain_sets import load_chains, load_set, save_set, select
from rectified.protein.chains import Chain, ChainBatches, PairBatches
from rectified.protein.checkpoints import load_checkpoint, save_checkpoint
from rectified.protein.designability import Tools, designable_share, self_consistency
from rectified.protein.folds import diversity, helix_and_strand, tm_score, tm_scores
from rectified.protein.frames import Frames, atoms_to_frames, frames_to_atoms
from rectified.protein.geometry import Geometry, measure, rmsd
from rectified.protein.model import SIZES, FlowModel, ModelSizes, sized
from rectified.protein.sampling import Denoiser, Samples, frame_step, sample
from rectified.protein.se3_flow import FrameLoss, interpolate, prior, training_noise
from rectified.protein.structure_files import ChainRules, ChainSet, pdb_text, read_structure

__all__ = [
    "SIZES",
    "Chain",
    "ChainBatches",
    "ChainRules",
    "ChainSet",
    "Denoiser",
    "FlowModel",
    "FrameLoss",
    "Frames",
    "Geometry",
    "ModelSizes",
    "PairBatches",
    "Samples",
    "Tools",
    "atoms_to_frames",
    "designable_share",
    "diversity",
    "frame_step",
    "frames_to_atoms",
    "helix_and_strand",
    "interpolate",
    "load_chains",
    "load_checkpoint",
    "load_set",
    "measure",
    "pdb_text",
    "prior",
    "read_structure",
    "rmsd",
    "sample",
    "save_checkpoint",
    "save_set",
    "select",
    "self_consistency",
    "sized",
    "tm_score",
    "tm_scores",
    "training_noise",
]
