"""Names of version 0.1 that have moved say in one line where to."""

import importlib

import pytest

MOVED = {
    "rectified.pruning.compact": "rectified.inference.compact",
    "rectified.pruning.compaction": "rectified.inference.compaction",
    "rectified.pruning.resize": "rectified.inference.resize",
    "rectified.pruning.fold_batch_norm": "rectified.inference.fold_batch_norm",
    "rectified.pruning.sparsify": "rectified.inference.sparsify",
    "rectified.pruning.save_sparse": "rectified.inference.save",
    "rectified.pruning.load_sparse": "rectified.inference.load",
    "rectified.pruning.semi_structured": "rectified.inference.semi_structured",
    "rectified.binary.pack": "rectified.inference.pack",
    "rectified.binary.save_packed": "rectified.inference.save",
    "rectified.binary.load_packed": "rectified.inference.load",
}


@pytest.mark.parametrize("old", MOVED)
def test_a_name_that_has_moved_says_where_to(old: str) -> None:
    room, _, name = old.rpartition(".")
    for ask in (
        lambda: getattr(importlib.import_module(room), name),
        lambda: exec(f"from {room} import {name}"),
    ):
        with pytest.raises(ImportError) as raised:
            ask()
        assert str(raised.value) == f"{old} has moved to {MOVED[old]}"


@pytest.mark.parametrize("new", sorted(set(MOVED.values())))
def test_it_is_where_that_says(new: str) -> None:
    room, _, name = new.rpartition(".")
    assert callable(getattr(importlib.import_module(room), name))


@pytest.mark.parametrize("room", ["rectified.pruning", "rectified.binary"])
def test_other_names_are_missing_as_usual(room: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{room}' has no attribute 'nothing'"):
        _ = importlib.import_module(room).nothing
