"""Whole sets of chains: a folder of structure files, or one npz file that holds them all.

An npz set has the arrays

    coords    float32 [residues, 4, 3]   N, CA, C, O of all chains, one after the other, Angstrom
    length    int     [chains]
    name      text    [chains]
    sequence, cluster, split             optional; `split` says train or val for each chain
    index     int     [residues]         optional: numbers of the residues

and may hold more. Chains that break a rule are refused one by one, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rectified.errors import UserError, first_line
from rectified.files import read_arrays
from rectified.protein.chains import Chain
from rectified.protein.folds import helix_and_strand
from rectified.protein.geometry import peptide_bonds, radius_of_gyration
from rectified.protein.structure_files import ChainRules, ChainSet, read_folder, read_structure

_REQUIRED = ("coords", "length", "name")
_BONDED = (1.2, 1.5)


def load_chains(path: Path, rules: ChainRules | None = None) -> ChainSet:
    """Chains from a folder of PDB and mmCIF files, one such file, or an npz set.

    Raises:
        UserError: if there is nothing there, or nothing of it can be used.
    """
    if path.is_dir():
        return read_folder(path, rules)
    if not path.is_file():
        raise UserError(f"no data at {path}: give a folder of PDB or mmCIF files, or an npz set")
    if path.suffix == ".npz":
        return load_set(path, rules)
    chains, refused = read_structure(path, rules)
    if not chains:
        raise UserError(refused[0])
    return ChainSet(train=chains, refused=refused)


def load_set(path: Path, rules: ChainRules | None = None) -> ChainSet:
    """The chains of an npz set.

    Raises:
        UserError: if the file is damaged, is not a set of chains, or no chain can be used.
    """
    rules = rules or ChainRules()
    arrays = _arrays(path)
    ends = np.cumsum(arrays["length"])
    found = ChainSet()
    for place, end in enumerate(ends.tolist()):
        begin = end - int(arrays["length"][place])
        name = str(arrays["name"][place])
        atoms = torch.from_numpy(arrays["coords"][begin:end].astype(np.float32))
        reason = _fault(atoms, rules)
        if reason:
            found.refused.append(f"{path.name}, chain {name}: {reason}")
            continue
        numbers = arrays["index"][begin:end] if "index" in arrays else np.arange(1, len(atoms) + 1)
        chain = Chain(
            name,
            atoms,
            torch.from_numpy(np.asarray(numbers, dtype=np.int64)),
            str(arrays["sequence"][place]) if "sequence" in arrays else "X" * len(atoms),
            int(arrays["cluster"][place]) if "cluster" in arrays else place,
        )
        (found.held_out if _is_held_out(arrays, place, chain) else found.train).append(chain)
    if not found.train:
        reason = found.refused[0] if found.refused else "it holds no chain to train on"
        raise UserError(f"{path}: no chain can be used; the first: {reason}")
    return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read: empty, truncated or damaged ({first_line(error)})"
        ) from error
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise UserError(f"{path} is not a set of chains: it lacks {', '.join(missing)}")
    coords, length = arrays["coords"], arrays["length"]
    if coords.ndim != 3 or coords.shape[1:] != (4, 3):
        raise UserError(f"coords in {path} must be [residues, 4, 3], got {list(coords.shape)}")
    if int(length.sum()) != len(coords) or len(arrays["name"]) != len(length):
        raise UserError(
            f"{path} is inconsistent: {int(length.sum())} residues by length, {len(coords)} in "
            f"coords; {len(length)} chains, {len(arrays['name'])} names"
        )
    return arrays


def _fault(atoms: torch.Tensor, rules: ChainRules) -> str:
    """The reason why a chain cannot be used; empty if it can."""
    count = len(atoms)
    if not rules.shortest <= count <= rules.longest:
        kind = "short" if count < rules.shortest else "long"
        return f"too {kind}, {count} residues; must be {rules.shortest} to {rules.longest}"
    bad = (~atoms.isfinite()).flatten(1).any(1)
    if bad.any():
        return f"residue {int(bad.int().argmax()) + 1} has coordinates that are no number"
    bonds = peptide_bonds(atoms)
    broken = (bonds < _BONDED[0]) | (bonds > _BONDED[1])
    if broken.any():
        place = int(broken.int().argmax())
        return f"residue {place + 2} is not bonded: C-N is {float(bonds[place]):.2f} Angstrom"
    return ""


def _is_held_out(arrays: dict[str, np.ndarray], place: int, chain: Chain) -> bool:
    if "split" in arrays:
        return str(arrays["split"][place]) != "train"
    return chain.cluster % 10 == 9


def save_set(path: Path, chains: ChainSet) -> None:
    """Write an npz set that `load_set` reads back."""
    everyone: Sequence[Chain] = [*chains.train, *chains.held_out]
    if not everyone:
        raise UserError("chains must hold at least one chain, got none")
    np.savez_compressed(
        path,
        coords=np.concatenate([chain.atoms.numpy() for chain in everyone]),
        index=np.concatenate([chain.index.numpy() for chain in everyone]),
        length=np.array([len(chain) for chain in everyone]),
        name=np.array([chain.name for chain in everyone]),
        sequence=np.array([chain.sequence for chain in everyone]),
        cluster=np.array([chain.cluster for chain in everyone]),
        split=np.array(["train"] * len(chains.train) + ["val"] * len(chains.held_out)),
    )


def select(
    chains: Sequence[Chain], *, largest_coil: float = 1.0, largest_compactness: float = float("inf")
) -> list[Chain]:
    """The reference's filters: little coil, and no larger than a globular chain.

    Args:
        chains: to choose from.
        largest_coil: share of residues in neither helix nor strand (P-SEA), at most.
        largest_compactness: radius of gyration over 2.2 n^0.38, at most; 1.3 keeps globular ones.
    """
    kept = []
    for chain in chains:
        compactness = float(radius_of_gyration(chain.atoms)) / (2.2 * len(chain) ** 0.38)
        if compactness > largest_compactness:
            continue
        if largest_coil < 1 and 1 - sum(helix_and_strand(chain.atoms[:, 1])) > largest_coil:
            continue
        kept.append(chain)
    return kept
