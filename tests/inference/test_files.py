"""Lean files through one door: each is read as what it says it is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rectified.binary import BinaryLinear
from rectified.errors import UserError
from rectified.inference import PackedModel, load, pack, save, sparsify


def test_a_packed_network_comes_back_and_runs(tmp_path: Path) -> None:
    packed, x = pack(nn.Sequential(BinaryLinear(70, 40), nn.ReLU())), torch.randn(3, 70)
    size = save(packed, tmp_path / "packed.safetensors")
    loaded = load(tmp_path / "packed.safetensors")
    assert size == (tmp_path / "packed.safetensors").stat().st_size
    assert isinstance(loaded, PackedModel)
    assert torch.equal(loaded(x), packed(x))


@pytest.mark.parametrize("as_state", [False, True])
def test_any_other_network_comes_back_as_a_state_dict(tmp_path: Path, as_state: bool) -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.BatchNorm1d(50))
    nn.init.zeros_(model[0].weight[1:])
    save(model.state_dict() if as_state else model, tmp_path / "lean.safetensors")
    state = load(tmp_path / "lean.safetensors")
    assert isinstance(state, dict)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_values_may_be_stored_in_half_the_size(tmp_path: Path) -> None:
    weights = {"w": torch.randn(100, 100) * (torch.rand(100, 100) < 0.1)}
    whole = save(weights, tmp_path / "a.safetensors")
    assert save(weights, tmp_path / "b.safetensors", values="float16") < 0.7 * whole


def test_what_sparsify_returned_is_no_network_to_store(tmp_path: Path) -> None:
    fast = sparsify(nn.Linear(4, 3), torch.ones(1, 4), network="dense")
    with pytest.raises(UserError, match="save the network that sparsify was given"):
        save(fast, tmp_path / "lean.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_files_of_others_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors", metadata)
    with pytest.raises(UserError, match=r"w\.safetensors must be written by rectified\.inference"):
        load(tmp_path / "w.safetensors")


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"words")
    for name in ("w.safetensors", "missing.safetensors"):
        with pytest.raises(UserError, match="cannot be read as a safetensors file"):
            load(tmp_path / name)
