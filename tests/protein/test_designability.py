"""Designability: the adapter, with stand-ins for ProteinMPNN and ESMFold."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectified.errors import UserError
from rectified.protein.designability import SCRIPT, Tools, designable_share, self_consistency

from .conftest import helix

MPNN = """
import argparse, pathlib
parser = argparse.ArgumentParser()
for name in ("pdb_path", "out_folder", "num_seq_per_target", "batch_size", "sampling_temp", "seed"):
    parser.add_argument("--" + name)
options = parser.parse_args()
folder = pathlib.Path(options.out_folder) / "seqs"
folder.mkdir()
count = int(options.num_seq_per_target)
entries = [">input\\n" + "G" * 20] + [f">T={options.sampling_temp}\\n" + "A" * 20] * count
(folder / "backbone.fa").write_text("\\n".join(entries) + "\\n")
"""
FOLD = """#!/usr/bin/env python3
import pathlib, sys
fasta, out = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[4])
out.mkdir()
source = (fasta.parent / "backbone.pdb").read_text().splitlines()
for n, entry in enumerate(fasta.read_text().split(">")[1:]):
    assert entry.splitlines()[1] == "A" * 20  # the input's own sequence is left out
    rows = []
    for row in source:
        if row.startswith("ATOM") and n == 0:  # the first design folds into something else
            row = row[:30] + f"{-float(row[30:38]):8.3f}" + row[38:]
        rows.append(row)
    (out / f"design_{n}.pdb").write_text("\\n".join(rows) + "\\n")
"""


@pytest.fixture
def tools(tmp_path) -> Tools:
    (tmp_path / "mpnn").mkdir()
    (tmp_path / "mpnn" / SCRIPT).write_text(MPNN)
    program = tmp_path / "esm-fold"
    program.write_text(FOLD)
    program.chmod(0o755)
    return Tools(tmp_path / "mpnn", str(program), sequences=2)


def test_the_best_fold_counts(tools):
    (found,) = self_consistency([helix(20)], tools)
    assert found < 0.01
    assert designable_share([found]) == 1


def test_a_backbone_that_no_sequence_folds_into_is_not_designable(tools):
    (found,) = self_consistency([helix(20)], Tools(tools.mpnn, tools.esmfold, sequences=1))
    assert found > 2  # only the mirrored fold
    assert designable_share([found]) == 0


def test_what_is_missing_is_named(tools, tmp_path):
    with pytest.raises(UserError, match=r"has no protein_mpnn_run\.py: give the folder"):
        Tools(tmp_path / "nowhere").check()
    with pytest.raises(UserError, match="the program no-such-fold is not installed"):
        Tools(tools.mpnn, "no-such-fold").check()
    with pytest.raises(UserError, match="sequences must be at least 1, got 0"):
        Tools(tools.mpnn, tools.esmfold, sequences=0).check()


@pytest.mark.parametrize(
    ("script", "fold", "message"),
    [
        ("raise SystemExit('no weights')", FOLD, "failed with code 1: no weights"),
        ("pass", FOLD, r"ProteinMPNN wrote no backbone\.fa"),
        (MPNN.replace("] * count", "] * 0"), FOLD, "ProteinMPNN wrote no sequence"),
        (MPNN, "#!/bin/sh\nexit 3\n", "failed with code 3: it said nothing"),
        (MPNN, "#!/bin/sh\n", r"the folding program wrote no design_0\.pdb"),
        (
            MPNN,
            FOLD.replace("rows.append(row)", 'rows.append(row) if " 20 " not in row else None'),
            r"the fold design_0\.pdb has other residues",
        ),
    ],
)
def test_programs_that_fail_are_told(tools, script, fold, message):
    (tools.mpnn / SCRIPT).write_text(script)
    Path(tools.esmfold).write_text(fold)
    with pytest.raises(UserError, match=message):
        self_consistency([helix(20)], tools)
