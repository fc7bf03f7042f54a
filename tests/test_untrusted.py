"""A file's own word for its size is checked before memory is taken."""

import gzip
import zipfile

import pytest
import torch
from torch import nn

from rectified import untrusted
from rectified.untrusted import check_archive, check_gzip, check_shapes, with_no_weights


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
    monkeypatch.setattr(untrusted, "FREE_BYTES", 1000)
    with pytest.raises(ValueError, match="entries are larger than the file: 100000 bytes in"):
        check_archive(bomb, stored=False)


def test_a_compressed_file_that_grows_is_refused_without_being_kept(tmp_path, monkeypatch):
    path = tmp_path / "a.pdb.gz"
    path.write_bytes(gzip.compress(bytes(10**6)))
    check_gzip(path)
    monkeypatch.setattr(untrusted, "FREE_BYTES", 1000)
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
