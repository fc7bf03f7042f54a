"""Sparse files give back the same weights, in little space."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rectified.errors import UserError
from rectified.inference.sparse.files import HEADER, load_sparse, save_sparse


def sparse_tensor(shape: tuple[int, ...], density: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < density
    return torch.randn(shape, generator=generator) * kept


@pytest.mark.parametrize("density", [0.0, 0.001, 0.03, 0.12, 0.5, 1.0])
def test_every_density_comes_back_exactly(tmp_path: Path, density: float) -> None:
    state = {"a.weight": sparse_tensor((37, 53), density), "b": sparse_tensor((3, 5, 7), density)}
    save_sparse(state, tmp_path / "w.safetensors")
    back = load_sparse(tmp_path / "w.safetensors")
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_a_network_with_norms_and_counters_comes_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    save_sparse(model, tmp_path / "w.safetensors")
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    fresh.load_state_dict(load_sparse(tmp_path / "w.safetensors"))
    x = torch.ones(2, 3, 8, 8)
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_tied_scalar_empty_and_half_tensors_come_back(tmp_path: Path) -> None:
    weight = sparse_tensor((20, 20), 0.1)
    state = {
        "one": weight,
        "same": weight,
        "turned": weight.t(),
        "scalar": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
        "half": weight.bfloat16(),
        "double": weight.double(),
    }
    save_sparse(state, tmp_path / "w.safetensors")
    back = load_sparse(tmp_path / "w.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert all(back[name].dtype == tensor.dtype for name, tensor in state.items())


@pytest.mark.parametrize(("density", "most"), [(0.03, 0.0385), (0.5, 0.54), (1.0, 1.001)])
def test_the_smallest_form_is_taken(tmp_path: Path, density: float, most: float) -> None:
    weight = sparse_tensor((1000, 1000), density)
    size = save_sparse({"w": weight}, tmp_path / "w.safetensors")
    assert size < most * weight.nbytes
    assert size == (tmp_path / "w.safetensors").stat().st_size


@pytest.mark.parametrize(("values", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_values_are_rounded_to_nearest_and_half_as_large(
    tmp_path: Path, values: str, error: float
) -> None:
    weight = sparse_tensor((300, 300), 0.05)
    whole = save_sparse({"w": weight}, tmp_path / "whole.safetensors")
    half = save_sparse({"w": weight}, tmp_path / "half.safetensors", values=values)
    back = load_sparse(tmp_path / "half.safetensors")["w"]
    assert back.dtype == torch.float32
    assert ((back - weight).abs() <= error * weight.abs() + 1e-7).all()
    assert whole - half == pytest.approx(2 * int((weight != 0).sum()), abs=16)


def test_unknown_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown type of values 'int8'; choose from float32"):
        save_sparse({}, tmp_path / "w.safetensors", values="int8")


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("rectified.files.Path.replace", full)
    with pytest.raises(OSError, match="no space left"):
        save_sparse({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_missing_and_truncated_files_give_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="cannot be read as a safetensors file") as missing:
        load_sparse(path)
    save_sparse({"w": sparse_tensor((50, 50), 0.1)}, path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot be read as a safetensors file") as truncated:
            load_sparse(path)
    assert "\n" not in str(missing.value) + str(truncated.value)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="must be written by save_sparse"):
        load_sparse(tmp_path / "w.safetensors")


def test_other_versions_are_refused(tmp_path: Path) -> None:
    metadata = {"format": HEADER["format"], "version": "2", "tensors": "{}"}
    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors", metadata)
    with pytest.raises(UserError, match="must have format version 1, got '2'"):
        load_sparse(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"form": "gaps", "shape": [2, 2], "dtype": "float32"},  # a position beyond the end
        {"form": "gaps", "shape": [100], "dtype": "float64"},
        {"form": "bits", "shape": [4], "dtype": "float32"},  # no bits stored
        {"form": "gaps", "shape": [4], "dtype": "no_type"},
        {"form": "gaps"},
    ],
)
def test_damaged_contents_give_one_line(tmp_path: Path, entry: dict[str, object]) -> None:
    metadata = {"format": HEADER["format"], "version": "1", "tensors": json.dumps({"w": entry})}
    values = 2 if entry.get("shape") == [2, 2] else 3
    parts = {"w:gaps": torch.tensor([0, 9], dtype=torch.uint8), "w:values": torch.ones(values)}
    save_file(parts, tmp_path / "w.safetensors", metadata)
    with pytest.raises(UserError, match=r"w\.safetensors is damaged: \w+: "):
        load_sparse(tmp_path / "w.safetensors")


def test_positions_before_and_after_long_gaps_are_exact(tmp_path: Path) -> None:
    for first in (0, 1, 253, 254, 255, 256, 509, 510, 511, 1019, 1020, 1021):
        weight = torch.zeros(5000)
        weight[[first, first + 1, 4999]] = torch.tensor([1.0, -2.0, math.pi])
        save_sparse({"w": weight}, tmp_path / "w.safetensors")
        assert torch.equal(load_sparse(tmp_path / "w.safetensors")["w"], weight)
