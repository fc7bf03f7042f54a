"""Files that are written whole, and files that say more than they hold."""

import errno
import gzip
import json
import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rectified import files
from rectified.errors import UserError
from rectified.files import (
    atomic,
    atomic_folder,
    check_archive,
    check_gzip,
    check_shapes,
    from_json,
    read_arrays,
    read_json,
    read_tensors,
    to_json,
    with_no_weights,
    write_tensors,
    write_text,
)


def test_a_writer_that_fails_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic(target) as temporary:
        temporary.write_text("half of the n" * (1 // 0))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_is_complete_before_it_has_its_name(tmp_path):
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_an_error_of_the_disk_names_the_file_and_not_the_temporary(tmp_path):
    with pytest.raises(OSError) as caught, atomic(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_a_full_disk_is_an_os_error_for_tensors_too(tmp_path, monkeypatch):
    target = tmp_path / "a.safetensors"
    write_tensors(target, {"old": torch.ones(1)}, {})
    before = target.read_bytes()

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        write_tensors(target, {"new": torch.zeros(9)}, {})
    assert caught.value.errno == errno.ENOSPC
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def names(folder):
    return sorted(str(entry.relative_to(folder)) for entry in folder.rglob("*"))


def test_a_folder_is_complete_before_it_has_its_name_and_replaces_the_old(tmp_path):
    target = tmp_path / "parts"
    target.mkdir()
    (target / "old.txt").touch()
    with atomic_folder(target) as temporary:
        (temporary / "new.txt").touch()
        assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["parts", "parts/new.txt"]


def test_a_folder_that_fails_leaves_the_old_one_alone(tmp_path):
    target = tmp_path / "parts"
    with atomic_folder(target) as temporary:
        (temporary / "old.txt").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as temporary:
        (temporary / "half.txt").write_text("half" * (1 // 0))
    assert names(tmp_path) == ["parts", "parts/old.txt"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"{", "Expecting property name"),
        (b"[" * 100_000, "recursion"),
        (b"\xff", "can't decode"),
    ],
)
def test_json_that_cannot_be_read_is_named_with_the_remedy(tmp_path, content, reason):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json is damaged .*{reason}.*\): copy it anew"):
        read_json(path, remedy="copy it anew")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "1" * 5000])
def test_text_that_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        from_json(text)


def test_tensors_and_what_is_said_of_them_come_back(tmp_path):
    tensors = {"a": torch.arange(3), "b": torch.zeros(0, 2)}
    write_tensors(tmp_path / "t.safetensors", tensors, {"of": "a network"})
    found, about = read_tensors(tmp_path / "t.safetensors")
    assert {name: value.tolist() for name, value in found.items()} == {"a": [0, 1, 2], "b": []}
    assert about == {"of": "a network"}


def test_a_file_need_not_say_anything_of_its_tensors(tmp_path):
    write_tensors(tmp_path / "t.safetensors", {})
    assert read_tensors(tmp_path / "t.safetensors") == ({}, {})


@pytest.mark.parametrize("content", [None, b"", b"text", bytes(8), b"\x02" + bytes(7) + b"{}x"])
def test_tensors_that_cannot_be_read_are_a_value_error(tmp_path, content):
    path = tmp_path / "t.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError):
        read_tensors(path)


def test_arrays_come_back(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(3), word=np.array("w"))
    found = read_arrays(tmp_path / "a.npz")
    assert found["x"].tolist() == [0, 1, 2]
    assert str(found["word"]) == "w"


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "object", "one"])
def test_arrays_that_cannot_be_read_are_a_value_error(tmp_path, kind):
    path = tmp_path / "a.npz"
    values = np.array([None]) if kind == "object" else np.arange(300)
    if kind != "missing":
        np.savez(path, x=values)
    if kind == "one":  # a single array, under the name of an archive
        with path.open("wb") as file:
            np.save(file, values)
    if kind in ("empty", "cut"):
        path.write_bytes(path.read_bytes()[: 200 * (kind == "cut")])
    with pytest.raises(ValueError):
        read_arrays(path)


def test_numbers_that_are_not_finite_become_null_at_any_depth():
    value = {"a": [float("nan"), {"b": (float("inf"), -float("inf"), 1.5)}]}
    assert json.loads(to_json(value)) == {"a": [None, {"b": [None, None, 1.5]}]}


def test_json_holds_dataclasses_paths_and_sets():
    @dataclass
    class Point:
        x: float

    found = to_json({"p": Point(1.0), "path": Path("a/b"), "set": {1}, 2: "ü"})
    assert found == '{"p": {"x": 1.0}, "path": "a/b", "set": [1], "2": "ü"}'


def archive(path, content, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", how) as file:
        file.writestr("a", content)
    return path


def test_archives_that_hold_what_they_weigh_are_let_through(tmp_path):
    plain = archive(tmp_path / "plain", bytes(100), zipfile.ZIP_STORED)
    for path in (plain, tmp_path / "text"):
        (tmp_path / "text").write_text("no archive")
        check_archive(path, stored=True)
        check_archive(path, stored=False)
    check_archive(archive(tmp_path / "small", bytes(1000)), stored=False)


def test_archives_that_grow_are_refused(tmp_path, monkeypatch):
    bomb = archive(tmp_path / "bomb", bytes(10**5))
    with pytest.raises(ValueError, match="compressed, which torch"):
        check_archive(bomb, stored=True)
    monkeypatch.setattr(files, "FREE_BYTES", 1000)
    with pytest.raises(ValueError, match="entries are larger than the file: 100000 bytes in"):
        check_archive(bomb, stored=False)


def test_a_compressed_file_that_grows_is_refused_without_being_kept(tmp_path, monkeypatch):
    path = tmp_path / "a.pdb.gz"
    path.write_bytes(gzip.compress(bytes(10**6)))
    check_gzip(path)
    monkeypatch.setattr(files, "FREE_BYTES", 1000)
    with pytest.raises(ValueError, match="it holds more than"):
        check_gzip(path)
    check_gzip(path.rename(tmp_path / "a.pdb"))  # not by its name: it is read as it is
    path.write_bytes(gzip.compress(bytes(10**6))[:50])
    with pytest.raises(EOFError):
        check_gzip(path)


def test_a_network_of_any_size_can_be_described():
    shapes = with_no_weights(lambda: nn.Sequential(nn.Linear(10**7, 10**7), nn.BatchNorm1d(3)))
    assert shapes["0.weight"] == (10**7, 10**7)
    assert shapes["1.num_batches_tracked"] == ()
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held.pop("bias"), "it lacks bias"),
        (lambda held: held.update(more=torch.zeros(1)), "it has more, which the network lacks"),
        (lambda held: held.update(bias=torch.zeros(3)), r"bias must be \(2,\), got \(3,\)"),
    ],
)
def test_what_a_network_is_and_what_a_file_holds_must_agree(change, words):
    held = nn.Linear(3, 2).state_dict()
    check_shapes(lambda: nn.Linear(3, 2), held)
    change(held)
    with pytest.raises(ValueError, match=words):
        check_shapes(lambda: nn.Linear(3, 2), held)
