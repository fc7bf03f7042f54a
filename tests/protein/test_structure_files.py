"""Structure files: what is read, what is refused and why, and what is written."""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rectified import files
from rectified.errors import UserError
from rectified.protein.chain_sets import load_chains, load_set, save_set, select
from rectified.protein.geometry import measure
from rectified.protein.structure_files import (
    ChainRules,
    ChainSet,
    pdb_text,
    read_folder,
    read_structure,
)

from .conftest import chain, chain_from_torsions, helix, strand

RULES = ChainRules(shortest=10, longest=60)
BACKBONES = Path(__file__).parents[3] / "shared" / "data" / "proteins" / "backbones.npz"


def lines_of(atoms: torch.Tensor) -> list[str]:
    return [line for line in pdb_text([atoms]).splitlines() if line.startswith("ATOM")]


def written(folder: Path, lines: list[str], name: str = "1abc.pdb") -> Path:
    file = folder / name
    text = "\n".join([*lines, "END", ""])
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return file


def residue(lines: list[str], number: int) -> list[int]:
    return [i for i, line in enumerate(lines) if int(line[22:26]) == number]


def changed(lines: list[str], number: int, **columns: str) -> list[str]:
    """The lines with columns (`c17_20=`) of one residue replaced."""
    lines = list(lines)
    for i in residue(lines, number):
        for name, value in columns.items():
            begin, end = (int(part) for part in name[1:].split("_"))
            lines[i] = lines[i][:begin] + value.rjust(end - begin)[: end - begin] + lines[i][end:]
    return lines


@pytest.mark.parametrize("name", ["1abc.pdb", "1abc.ent.gz"])
def test_what_is_written_is_read_back(tmp_path, name):
    atoms = helix(20)
    ((found,), refused) = read_structure(written(tmp_path, lines_of(atoms), name), RULES)
    assert refused == []
    assert found.name == "1abc_A"
    assert found.sequence == "A" * 20
    torch.testing.assert_close(found.atoms, atoms - atoms[:, 1].mean(0), atol=2e-3, rtol=0)
    assert found.index.tolist() == list(range(1, 21))


def test_biotite_opens_what_is_written(tmp_path):
    from biotite.structure.io import load_structure

    array = load_structure(str(written(tmp_path, lines_of(helix(12)))))
    assert array.array_length() == 48
    assert set(array.atom_name) == {"N", "CA", "C", "O"}


def test_a_trajectory_has_a_model_a_state(tmp_path):
    from rectified.protein.frames import atoms_to_frames

    states = [atoms_to_frames(helix(5)).atoms() * scale for scale in (1.0, 1.1, 1.2)]
    text = pdb_text(states, sequence="GAVLW")
    assert text.count("MODEL ") == text.count("ENDMDL") == 3
    assert text.count("GLY") == 3 * 4  # no CB
    assert text.count(" CB ") == 3 * 4
    assert "TRP" in text


def test_mmcif_is_read_too(tmp_path):
    import gemmi

    source = written(tmp_path, lines_of(strand(15)))
    structure = gemmi.read_structure(str(source))
    structure.setup_entities()
    target = tmp_path / "2xyz.cif"
    structure.make_mmcif_document().write_file(str(target))
    ((found,), _) = read_structure(target, RULES)
    assert len(found) == 15


def test_only_the_first_model_counts(tmp_path):
    text = pdb_text([helix(12), strand(12)])
    file = tmp_path / "nmr.pdb"
    file.write_text(text)
    ((found,), _) = read_structure(file, RULES)
    torch.testing.assert_close(found.atoms, helix(12), atol=2e-3, rtol=0)


def test_the_better_occupied_conformation_counts(tmp_path):
    atoms = helix(12)
    lines = lines_of(atoms)
    doubled = []
    for i, line in enumerate(lines):
        if i in residue(lines, 5):
            moved = f"{float(line[30:38]) + 1:8.3f}"
            doubled.append(
                line[:16] + "A" + line[17:30] + moved + line[38:54] + "  0.30" + line[60:]
            )
            doubled.append(line[:16] + "B" + line[17:54] + "  0.70" + line[60:])
        else:
            doubled.append(line)
    ((found,), _) = read_structure(written(tmp_path, doubled), RULES)
    torch.testing.assert_close(found.atoms, atoms, atol=2e-3, rtol=0)


def test_modified_residues_belong_to_the_chain_and_waters_and_ligands_do_not(tmp_path):
    lines = changed(lines_of(helix(12)), 5, c17_20="MSE")
    lines += ["HETATM  900  O   HOH A 300      99.000  99.000  99.000  1.00  0.00           O"]
    lines += ["HETATM  901  C1  GOL A 301      90.000  99.000  99.000  1.00  0.00           C"]
    ((found,), refused) = read_structure(written(tmp_path, lines), RULES)
    assert found.sequence == "AAAAMAAAAAAA"
    assert refused == []


def test_an_unknown_amino_acid_is_an_x(tmp_path):
    ((found,), _) = read_structure(
        written(tmp_path, changed(lines_of(helix(12)), 5, c17_20="ZQ7")), RULES
    )
    assert found.sequence == "AAAAXAAAAAAA"


def test_several_chains_are_several(tmp_path):
    first, second = lines_of(helix(12)), lines_of(strand(14))
    second = [line[:21] + "B" + line[22:] for line in second]
    found, _ = read_structure(written(tmp_path, first + second), RULES)
    assert [(one.name, len(one)) for one in found] == [("1abc_A", 12), ("1abc_B", 14)]


def test_a_short_tail_is_cut_off_and_numbers_keep_the_start(tmp_path):
    lines = lines_of(helix(30))
    del lines[residue(lines, 3)[0]]  # no N in residue 3
    ((found,), _) = read_structure(written(tmp_path, lines), RULES)
    assert len(found) == 27


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("missing residue", "residue ALA 11 comes after 1 missing residue"),
        ("missing atom", "residue ALA 10 lacks CA"),
        ("nan", "residue ALA 10 has coordinates that are no number"),
        ("apart", "residue ALA 11 is not bonded to ALA 10: C-N is"),
    ],
)
def test_a_broken_chain_is_refused_with_file_chain_and_residue(tmp_path, change, reason):
    lines = lines_of(helix(20))
    if change == "missing residue":
        lines = [line for i, line in enumerate(lines) if i not in residue(lines, 10)]
    elif change == "missing atom":
        del lines[residue(lines, 10)[1]]
    elif change == "nan":
        lines = changed(lines, 10, c30_38="nan")
    else:
        for i, line in enumerate(lines):
            if int(line[22:26]) > 10:
                lines[i] = line[:30] + f"{float(line[30:38]) + 20:8.3f}" + line[38:]
    found, (line,) = read_structure(written(tmp_path, lines), RULES)
    assert found == []
    assert line.startswith("1abc.pdb, chain A: broken, its longest run is")
    assert reason in line


@pytest.mark.parametrize(
    ("count", "reason"),
    [(9, "too short, 9 residues; must be at least 10"), (61, "too long, 61 residues")],
)
def test_too_short_or_too_long_a_chain_is_refused(tmp_path, count, reason):
    _, (line,) = read_structure(written(tmp_path, lines_of(helix(count))), RULES)
    assert line.startswith("1abc.pdb, chain A: ")
    assert reason in line


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pdb", b"", "holds no atoms: it is empty or truncated"),
        ("a.pdb", b"HEADER    ONLY A HEADER\n", "holds no atoms"),
        ("a.cif", b"data_x\nloop_\n_atom_site.id\n", "empty"),
        ("a.cif", b"", "empty"),
        ("a.pdb.gz", b"\x1f\x8b\x08\x00 not a gzip file", "empty"),
        ("a.txt", b"text", r"a.txt must end in .pdb, .ent, .cif, .mmcif"),
        (
            "a.pdb",
            b"HETATM    1  O   HOH A   1       1.000   1.000   1.000  1.00  0.00           O\n",
            "holds no protein chain",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        read_structure(tmp_path / name, RULES)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", [17, 21], ids=["residue", "chain"])
def test_a_name_that_is_no_text_is_refused(tmp_path, column):
    line = bytearray(
        b"ATOM      1  CA  GLY A   1       1.000   1.000   1.000  1.00  0.00           C\n"
    )
    line[column] = 0x93
    (tmp_path / "a.pdb").write_bytes(bytes(line))
    with pytest.raises(UserError, match=r"a.pdb is damaged: a name in it is no text"):
        read_structure(tmp_path / "a.pdb", RULES)


def test_a_truncated_gzip_is_refused(tmp_path):
    whole = gzip.compress("\n".join(lines_of(helix(40))).encode())
    (tmp_path / "a.pdb.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.pdb\.gz"):
        read_structure(tmp_path / "a.pdb.gz", RULES)


def test_files_that_grow_when_they_are_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FREE_BYTES", 10_000)
    (tmp_path / "a.pdb.gz").write_bytes(gzip.compress(b" " * 10**6))
    with pytest.raises(UserError, match=r"a\.pdb\.gz cannot be read.*holds more than"):
        read_structure(tmp_path / "a.pdb.gz")
    np.savez_compressed(tmp_path / "a.npz", coords=np.zeros((10**5, 4, 3)))
    with pytest.raises(UserError, match=r"a\.npz cannot be read.*larger than the file"):
        load_chains(tmp_path / "a.npz")


def test_a_folder_goes_on_counts_and_lists_what_is_bad(tmp_path):
    written(tmp_path, lines_of(helix(20)), "good.pdb")
    (tmp_path / "below").mkdir()
    written(tmp_path / "below", lines_of(strand(20)), "other.pdb.gz")
    (tmp_path / "empty.pdb").write_text("")
    written(tmp_path, lines_of(helix(5)), "short.pdb")
    (tmp_path / "notes.txt").write_text("not looked at")
    found = load_chains(tmp_path, RULES)
    assert sorted(one.name for one in found.train + found.held_out) == ["good_A", "other_A"]
    assert len(found.refused) == 2
    assert any("empty.pdb" in line for line in found.refused)
    assert any("short.pdb, chain A: too short, 5 residues" in line for line in found.refused)


def test_a_folder_with_nothing_in_it_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no structure files"):
        read_folder(tmp_path, RULES)
    (tmp_path / "empty.pdb").write_text("")
    with pytest.raises(
        UserError, match=r"no chain of 1 files can be used; the first: .*empty\.pdb"
    ):
        read_folder(tmp_path, RULES)


def test_one_file_is_a_set_too(tmp_path):
    assert len(load_chains(written(tmp_path, lines_of(helix(20))), RULES).train) == 1
    with pytest.raises(UserError, match="too short"):
        load_chains(written(tmp_path, lines_of(helix(5))), RULES)
    with pytest.raises(UserError, match="no data at"):
        load_chains(tmp_path / "nowhere", RULES)
    with pytest.raises(UserError, match="is not a file"):
        read_structure(tmp_path / "nowhere.pdb", RULES)


def test_sets_are_written_and_read_back(tmp_path):
    gapped = chain(helix(20), "a_A", 1)
    gapped = replace(gapped, index=gapped.index + (gapped.index > 9) * 3)
    save_set(
        tmp_path / "set.npz", ChainSet([gapped, chain(strand(15), "b_A", 2)], [chain(helix(12))])
    )
    found = load_chains(tmp_path / "set.npz", RULES)
    assert [one.name for one in found.train] == ["a_A", "b_A"]
    assert len(found.held_out) == 1
    assert torch.equal(found.train[0].atoms, gapped.atoms)
    assert torch.equal(found.train[0].index, gapped.index)
    with pytest.raises(UserError, match="chains must hold at least one chain"):
        save_set(tmp_path / "none.npz", ChainSet())


def arrays(**changes):
    atoms = torch.cat((helix(20), strand(15))).numpy()
    made = {"coords": atoms, "length": np.array([20, 15]), "name": np.array(["a_A", "b_A"])}
    return {name: value for name, value in (made | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": None}, "it lacks name"),
        ({"coords": np.zeros((35, 3))}, r"coords in .* must be \[residues, 4, 3\], got \[35, 3\]"),
        ({"length": np.array([20, 16])}, "inconsistent: 36 residues by length, 35 in coords"),
    ],
)
def test_a_set_that_is_none_is_refused(tmp_path, change, reason):
    np.savez(tmp_path / "set.npz", **arrays(**change))
    with pytest.raises(UserError, match=reason):
        load_set(tmp_path / "set.npz", RULES)


def test_chains_of_a_set_are_refused_one_by_one(tmp_path):
    np.savez(tmp_path / "set.npz", **arrays(length=np.array([1, 34])))
    with pytest.raises(UserError, match=r"no chain can be used; the first: .*a_A: too short"):
        load_set(tmp_path / "set.npz", RULES)
    atoms = torch.cat((helix(20), helix(20), strand(15))).numpy()
    np.savez(tmp_path / "set.npz", **arrays(coords=atoms, length=np.array([20, 35])))
    found = load_set(tmp_path / "set.npz", RULES)
    assert len(found.train + found.held_out) == 1
    (line,) = found.refused
    assert line.startswith("set.npz, chain b_A: residue 21 is not bonded: C-N is")


def test_a_chain_with_nan_is_refused_by_residue(tmp_path):
    made = arrays()
    made["coords"] = made["coords"].copy()
    made["coords"][6, 2, 1] = np.nan
    np.savez(tmp_path / "set.npz", **made)
    found = load_set(tmp_path / "set.npz", RULES)
    assert [one.name for one in found.train + found.held_out] == ["b_A"]
    assert found.refused == ["set.npz, chain a_A: residue 7 has coordinates that are no number"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_a_damaged_set_is_refused(tmp_path, content):
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"set\.npz cannot be read: empty, truncated or damaged"):
        load_set(tmp_path / "set.npz", RULES)


@pytest.mark.parametrize("head", [b"{'descr': ", b"{'descr': '<f4', 'shape': (1 2)}"])
def test_an_array_with_a_damaged_head_is_refused(tmp_path, head):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
        archive.writestr("coords.npy", content)
    with pytest.raises(UserError, match=r"set\.npz cannot be read: empty, truncated or damaged"):
        load_set(tmp_path / "set.npz", RULES)


def test_the_references_filters_keep_compact_chains_with_structure():
    coil = chain(chain_from_torsions(40, -80.0, 60.0), "coil")
    kept = select([chain(helix(40), "helix"), coil], largest_coil=0.5)
    assert [one.name for one in kept] == ["helix"]
    assert select([chain(strand(60), "long")], largest_compactness=1.3) == []
    assert len(select([coil])) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shortest": 2}, "shortest must be at least 3"),
        ({"shortest": 99, "longest": 50}, "at most longest, got 99 and 50"),
        ({"unbroken": 0.0}, "unbroken must be in"),
    ],
)
def test_impossible_rules_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        ChainRules(**change)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "models must hold at least one"),
        ([torch.full((3, 4, 3), float("nan"))], "coordinates must be below 9999 Angstrom, got nan"),
        ([torch.full((3, 4, 3), 1e5)], "coordinates must be below 9999"),
        ([torch.zeros(10_000, 4, 3)], "at most 9999 residues, got 10000"),
    ],
)
def test_what_a_pdb_file_cannot_hold_is_refused(models, message):
    with pytest.raises(UserError, match=message):
        pdb_text(models)


@pytest.mark.skipif(not BACKBONES.is_file(), reason="the set of real chains is not here")
def test_real_chains_have_the_geometry_of_real_chains():
    found = load_set(BACKBONES, ChainRules(shortest=40, longest=256))
    whole = found.train + found.held_out
    assert len(whole) + len(found.refused) == 576
    assert found.refused == []
    shares = [float(measure(one.atoms).ca_bond_valid) for one in whole[:100]]
    assert sum(shares) / 100 > 0.98
    idealised = [one.frames().atoms()[:, :4] - one.atoms for one in whole[:100]]
    off = torch.cat([one[:-1] for one in idealised]).square().sum(-1).mean(0).sqrt()
    # published for 214 of these chains: N 0.078, C 0.012, O 0.088 r.m.s.
    assert off[0] < 0.1
    assert off[2] < 0.02
    assert off[3] < 0.12
