"""Designability: whether some sequence would fold into a generated backbone.

ProteinMPNN proposes sequences for a backbone, ESMFold folds them, and the backbone is designable if
the best fold lies within 2 Angstrom (r.m.s. deviation of C-alphas). Both are programs with weights
of their own, several GB of them, which a user installs; this file calls them and reads what they
write:

    python FOLDER/protein_mpnn_run.py ...     writes seqs/NAME.fa, the input's own sequence first
    esm-fold -i FASTA -o FOLDER               writes NAME.pdb for each sequence

Where one of them is missing, one line says which. The other measures need neither.

References: Dauparas et al., "Robust deep learning-based protein sequence design using ProteinMPNN",
2022; Lin et al., "Evolutionary-scale prediction of atomic-level protein structure with a language
model", 2023 (ESMFold).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.protein.geometry import rmsd
from rectified.protein.structure_files import ChainRules, pdb_text, read_structure

LIMIT = 2.0  # Angstrom
SCRIPT = "protein_mpnn_run.py"
_TEMPERATURE, _SEED = 0.1, 38  # of ProteinMPNN, as in the literature


@dataclass(frozen=True)
class Tools:
    """The programs, and how many sequences are tried.

    Attributes:
        mpnn: ProteinMPNN's folder, which holds `protein_mpnn_run.py` and its weights.
        esmfold: the program that folds, by name or path.
        sequences: for each backbone.
    """

    mpnn: Path
    esmfold: str = "esm-fold"
    sequences: int = 8

    def check(self) -> None:
        """See whether everything is there.

        Raises:
            UserError: if a program is missing, or no sequence is asked for.
        """
        if not (self.mpnn / SCRIPT).is_file():
            raise UserError(f"{self.mpnn} has no {SCRIPT}: give the folder of ProteinMPNN")
        if shutil.which(self.esmfold) is None:
            raise UserError(f"the program {self.esmfold} is not installed: it folds sequences")
        if self.sequences < 1:
            raise UserError(f"sequences must be at least 1, got {self.sequences}")


def self_consistency(
    backbones: Sequence[Float[Tensor, "residues atoms 3"]], tools: Tools
) -> list[float]:
    """For each backbone the smallest deviation among the folds of its sequences, in Angstrom.

    Args:
        backbones: N, CA, C, O of each residue.
        tools: the programs.

    Raises:
        UserError: if a program is missing, fails, or writes something else than expected.
    """
    tools.check()
    return [_smallest_deviation(backbone.detach().cpu(), tools) for backbone in backbones]


def designable_share(deviations: Sequence[float]) -> float:
    """The share of backbones that are designable.

    Example:
        >>> designable_share([0.8, 2.5])
        0.5
    """
    return sum(value < LIMIT for value in deviations) / max(1, len(deviations))


def _smallest_deviation(backbone: Tensor, tools: Tools) -> float:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "backbone.pdb").write_text(pdb_text([backbone]))
        command = [sys.executable, str(tools.mpnn / SCRIPT)]
        command += ["--pdb_path", str(folder / "backbone.pdb"), "--out_folder", str(folder)]
        command += ["--num_seq_per_target", str(tools.sequences), "--batch_size", "1"]
        command += ["--sampling_temp", str(_TEMPERATURE), "--seed", str(_SEED)]
        _call(command)
        sequences = _sequences(folder / "seqs" / "backbone.fa")
        fasta = folder / "designs.fasta"
        fasta.write_text("".join(f">design_{n}\n{one}\n" for n, one in enumerate(sequences)))
        _call([tools.esmfold, "-i", str(fasta), "-o", str(folder / "folds")])
        found = [
            _deviation(backbone, folder / "folds" / f"design_{n}.pdb")
            for n in range(len(sequences))
        ]
    return min(found)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise UserError(f"{Path(command[0]).name} failed with code {done.returncode}: {said}")


def _sequences(file: Path) -> list[str]:
    """The designed sequences; the first entry is the input's own."""
    if not file.is_file():
        raise UserError(f"ProteinMPNN wrote no {file.name}")
    entries = [entry.partition("\n")[2] for entry in file.read_text().split(">")[1:]]
    designed = ["".join(entry.split()) for entry in entries[1:]]
    if not designed:
        raise UserError(f"ProteinMPNN wrote no sequence into {file.name}")
    return designed


def _deviation(backbone: Tensor, file: Path) -> float:
    if not file.is_file():
        raise UserError(f"the folding program wrote no {file.name}")
    chains, refused = read_structure(file, ChainRules(shortest=3, unbroken=1e-6))
    if not chains or len(chains[0]) != len(backbone):
        raise UserError(f"the fold {file.name} has other residues {'; '.join(refused)}")
    return float(rmsd(backbone[:, 1].float(), chains[0].atoms[:, 1]))
