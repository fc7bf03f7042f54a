"""Structure files: PDB and mmCIF in, PDB out. The parser is gemmi's.

Of each file the first model is read; of each residue, the conformation with the highest occupancy.
A residue counts if it is an amino acid, of the twenty or modified, and has finite N, CA, C, O; what
does not (waters, ligands) is no part of a chain. A chain breaks where a residue lacks atoms, where
numbers jump, or where C and the next N are not bonded. Of a broken chain the longest unbroken run
is taken, if it is most of the chain, and otherwise the chain is refused, with the residue that
broke it.

Files may be compressed with gzip.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError, first_line
from rectified.files import check_gzip
from rectified.protein.chains import Chain
from rectified.protein.folds import library
from rectified.protein.frames import ATOMS

SUFFIXES = tuple(
    kind + packing for kind in (".pdb", ".ent", ".cif", ".mmcif") for packing in ("", ".gz")
)
_BACKBONE = ("N", "CA", "C", "O")
_BONDED = (1.2, 1.5)  # lengths of C-N, Angstrom, between which residues are bonded
_LARGEST_NUMBER, _LARGEST_COORDINATE = 9999, 9999.0  # that the columns of a PDB file hold


@dataclass(frozen=True)
class ChainRules:
    """Rules for chains that are good enough to learn from.

    Attributes:
        shortest: residues, at least.
        longest: residues, at most.
        unbroken: share of a chain that its longest unbroken run must be.
    """

    shortest: int = 40
    longest: int = 512
    unbroken: float = 0.85

    def __post_init__(self) -> None:
        if not 3 <= self.shortest <= self.longest:
            raise UserError(
                f"shortest must be at least 3 and at most longest, got {self.shortest} and "
                f"{self.longest}"
            )
        if not 0 < self.unbroken <= 1:
            raise UserError(f"unbroken must be in (0, 1], got {self.unbroken}")


@dataclass
class ChainSet:
    """Chains to learn from, and what could not be used.

    Attributes:
        train: chains to learn from.
        held_out: chains of other clusters, to compare with.
        refused: one line each: file, chain, residue and reason.
    """

    train: list[Chain] = field(default_factory=list)
    held_out: list[Chain] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def read_structure(path: Path, rules: ChainRules | None = None) -> tuple[list[Chain], list[str]]:
    """The chains of one file.

    Args:
        path: PDB or mmCIF, also gzipped.
        rules: which chains are taken.

    Returns:
        The chains that can be used, and a line for each that cannot.

    Raises:
        UserError: if the file cannot be read, or holds no protein.
    """
    rules = rules or ChainRules()
    model = _first_model(path)
    chains, refused = [], []
    for part in model:
        try:
            name, residues = part.name, list(_residues(part))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is damaged: a name in it is no text") from error
        if not residues:
            continue
        try:
            chains.append(_chain(path, name, residues, rules))
        except UserError as error:
            refused.append(str(error))
    if not chains and not refused:
        raise UserError(f"{path} holds no protein chain: no residue is an amino acid")
    return chains, refused


def _first_model(path: Path) -> Any:
    gemmi = library("gemmi")
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path.name} must end in {', '.join(SUFFIXES[::2])}, also with .gz")
    try:
        check_gzip(path)
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, IndexError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read: empty, truncated or damaged ({first_line(error)})"
        ) from error
    if not len(structure) or not any(len(chain) for chain in structure[0]):
        raise UserError(f"{path} holds no atoms: it is empty or truncated")
    return structure[0]


@dataclass(frozen=True)
class _Residue:
    number: int
    name: str  # for messages: `GLY 10A`
    letter: str
    atoms: np.ndarray | None
    lacks: str


def _residues(chain: Any) -> Iterator[_Residue]:
    """Amino acids of a chain in order, one for each number."""
    gemmi = library("gemmi")
    seen = None
    for residue in chain:
        known = gemmi.find_tabulated_residue(residue.name)
        has_ca = any(atom.name == "CA" and atom.element.name == "C" for atom in residue)
        is_unknown = not known.found() and has_ca and residue.het_flag != "H"
        if not (known.is_amino_acid() or is_unknown) or residue.seqid == seen:
            continue  # of two residues in one place the first counts
        if residue.het_flag == "H" and not has_ca:
            continue
        seen = residue.seqid
        letter = known.one_letter_code.upper().strip() if known.found() else ""
        atoms, lacks = _best_atoms(residue)
        number = str(residue.seqid).strip()
        yield _Residue(residue.seqid.num, f"{residue.name} {number}", letter or "X", atoms, lacks)


def _best_atoms(residue: Any) -> tuple[np.ndarray | None, str]:
    """N, CA, C, O of the conformation with the highest occupancy, or what is missing."""
    occupied: dict[str, float] = {}
    for atom in residue:
        if atom.name in _BACKBONE and atom.altloc != "\0":
            occupied[atom.altloc] = occupied.get(atom.altloc, 0.0) + atom.occ
    best = max(occupied, key=lambda letter: occupied[letter], default="\0")
    found: dict[str, Any] = {}
    for atom in residue:
        if atom.name in _BACKBONE and (atom.name not in found or atom.altloc == best):
            found[atom.name] = atom
    missing = [name for name in _BACKBONE if name not in found]
    if missing:
        return None, f"lacks {', '.join(missing)}"
    atoms = np.array([found[name].pos.tolist() for name in _BACKBONE], dtype=np.float32)
    return (atoms, "") if np.isfinite(atoms).all() else (None, "has coordinates that are no number")


def _chain(path: Path, name: str, residues: list[_Residue], rules: ChainRules) -> Chain:
    where = f"{path.name}, chain {name or '(no name)'}"
    runs, reasons = _runs(residues)
    best = max(runs, key=len, default=[])
    if len(best) < rules.unbroken * len(residues):
        first = reasons[0] if reasons else "no residue is complete"
        raise UserError(
            f"{where}: broken, its longest run is {len(best)} of {len(residues)} residues: {first}"
        )
    if not rules.shortest <= len(best) <= rules.longest:
        kind = "short" if len(best) < rules.shortest else "long"
        limit = rules.shortest if kind == "short" else rules.longest
        least = "at least" if kind == "short" else "at most"
        raise UserError(f"{where}: too {kind}, {len(best)} residues; must be {least} {limit}")
    atoms = torch.from_numpy(np.stack([one.atoms for one in best if one.atoms is not None]))
    numbers = torch.tensor([one.number for one in best])
    stem = path.name.partition(".")[0]
    return Chain(
        f"{stem}_{name}",
        atoms - atoms[:, 1].mean(0),
        numbers - numbers[0] + 1,
        "".join(one.letter for one in best),
    )


def _runs(residues: list[_Residue]) -> tuple[list[list[_Residue]], list[str]]:
    """Unbroken runs of residues, and what broke the chain in each place."""
    runs: list[list[_Residue]] = [[]]
    reasons = []
    for before, residue in pairwise([None, *residues]):
        assert residue is not None
        reason = residue.lacks
        if not reason and before is not None and before.atoms is not None:
            reason = _break_between(before, residue)
        if reason:
            reasons.append(f"residue {residue.name} {reason}")
            runs.append([])
        if residue.atoms is not None:
            runs[-1].append(residue)
    return [run for run in runs if run], reasons


def _break_between(before: _Residue, residue: _Residue) -> str:
    assert before.atoms is not None
    assert residue.atoms is not None
    length = float(np.linalg.norm(residue.atoms[0] - before.atoms[2]))
    if _BONDED[0] <= length <= _BONDED[1]:
        return ""
    missing = residue.number - before.number - 1
    if missing > 0:
        return f"comes after {missing} missing residue{'s' * (missing > 1)}"
    return f"is not bonded to {before.name}: C-N is {length:.2f} Angstrom"


def read_folder(folder: Path, rules: ChainRules | None = None) -> ChainSet:
    """The chains of all structure files in a folder and below it.

    Files and chains that cannot be used are counted and listed, and the others are read. Equal
    sequences count as one cluster; every tenth cluster is held out.

    Args:
        folder: holds PDB or mmCIF files.
        rules: which chains are taken.

    Raises:
        UserError: if there is no structure file, or no chain can be used.
    """
    files = sorted(p for p in folder.rglob("*") if p.name.lower().endswith(SUFFIXES))
    if not files:
        raise UserError(f"{folder} holds no structure files ({', '.join(SUFFIXES[::2])}, also .gz)")
    found: list[Chain] = []
    refused: list[str] = []
    for file in files:
        try:
            chains, lines = read_structure(file, rules)
        except UserError as error:
            refused.append(str(error))
        else:
            found += chains
            refused += lines
    if not found:
        raise UserError(
            f"{folder}: no chain of {len(files)} files can be used; the first: {refused[0]}"
        )
    clusters = {sequence: n for n, sequence in enumerate(dict.fromkeys(c.sequence for c in found))}
    kept = ChainSet(refused=refused)
    for chain in found:
        cluster = clusters[chain.sequence]
        one = Chain(chain.name, chain.atoms, chain.index, chain.sequence, cluster)
        (kept.held_out if cluster % 10 == 9 else kept.train).append(one)
    return kept


def pdb_text(models: Sequence[Float[Tensor, "residues atoms 3"]], *, sequence: str = "") -> str:
    """Backbones as the text of a PDB file: one model, or the several of a trajectory.

    Args:
        models: N, CA, C, O and, where there is a fifth, CB of each residue, Angstrom.
        sequence: one letter per residue; alanines by default.

    Raises:
        UserError: for no model, too many residues, or coordinates that a PDB file cannot hold.

    Example:
        >>> text = pdb_text([torch.zeros(1, 5, 3)])
        >>> text.splitlines()[0][:26]
        'ATOM      1  N   ALA A   1'
    """
    gemmi = library("gemmi")
    if not models:
        raise UserError("models must hold at least one, got none")
    structure = gemmi.Structure()
    for number, atoms in enumerate(models, start=1):
        structure.add_model(_model(gemmi, number, atoms.detach().cpu(), sequence))
    structure.setup_entities()
    options = gemmi.PdbWriteOptions(minimal=True)
    options.cryst1_record = False  # there is no crystal
    options.ter_records = True
    return str(structure.make_pdb_string(options))


def _model(gemmi: Any, number: int, atoms: Tensor, sequence: str) -> Any:
    count = len(atoms)
    largest = float(atoms.abs().max()) if atoms.numel() else 0.0
    if not largest < _LARGEST_COORDINATE:
        raise UserError(
            f"coordinates must be below {_LARGEST_COORDINATE:g} Angstrom, got {largest}"
        )
    if count > _LARGEST_NUMBER:
        raise UserError(f"a PDB file holds at most {_LARGEST_NUMBER} residues, got {count}")
    letters = sequence or "A" * count
    chain = gemmi.Chain("A")
    for place in range(count):
        residue = gemmi.Residue()
        residue.name = gemmi.expand_one_letter(letters[place], gemmi.ResidueKind.AA) or "UNK"
        residue.seqid = gemmi.SeqId(place + 1, " ")
        residue.entity_type = gemmi.EntityType.Polymer
        for name, position in zip(ATOMS, atoms[place].tolist(), strict=False):
            if name == "CB" and residue.name == "GLY":
                continue
            atom = gemmi.Atom()
            atom.name, atom.element = name, gemmi.Element(name[0])
            atom.pos, atom.occ, atom.b_iso = gemmi.Position(*position), 1.0, 0.0
            residue.add_atom(atom)
        chain.add_residue(residue)
    model = gemmi.Model(number)
    model.add_chain(chain)
    return model
