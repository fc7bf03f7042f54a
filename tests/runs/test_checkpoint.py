import pytest
import torch

from rectified.errors import UserError
from rectified.runs import load_tree, save_tree


def test_a_tree_comes_back_as_it_was(tmp_path):
    tree = {
        "nested": {"list": [1, 2.5, None, True, "text"], 7: torch.arange(6).reshape(2, 3)},
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "mask": torch.tensor([[True], [False]]),
        "scalar": torch.tensor(3),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "no entries": torch.zeros(0, 4),
        "empty": [{}, []],
    }
    save_tree(tmp_path / "tree.safetensors", tree)
    found = load_tree(tmp_path / "tree.safetensors")
    assert list(found) == list(tree)
    assert found["nested"]["list"] == [1, 2.5, None, True, "text"]
    assert found["empty"] == [{}, []]
    for name in ("half", "mask", "scalar", "transposed", "no entries"):
        assert found[name].dtype == tree[name].dtype
        assert torch.equal(found[name], tree[name])
    assert torch.equal(found["nested"][7], tree["nested"][7])


def test_tuples_come_back_as_lists_and_undefined_numbers_as_they_were(tmp_path):
    save_tree(tmp_path / "t.safetensors", (1, (float("inf"),)))
    assert load_tree(tmp_path / "t.safetensors") == [1, [float("inf")]]


def test_a_tensor_that_occurs_twice_is_stored_once(tmp_path):
    tensor = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    save_tree(tmp_path / "one.safetensors", [tensor])
    save_tree(tmp_path / "two.safetensors", [tensor, {"again": tensor}])
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("one", "two")]
    assert sizes[1] - sizes[0] < 1000
    first, second = load_tree(tmp_path / "two.safetensors")
    assert torch.equal(first, tensor)
    assert torch.equal(second["again"], tensor)


def test_views_of_one_memory_keep_their_own_values(tmp_path):
    whole = torch.arange(6.0)
    save_tree(tmp_path / "t.safetensors", [whole, whole[:3], whole.reshape(2, 3), whole[::2]])
    found = load_tree(tmp_path / "t.safetensors")
    assert [one.tolist() for one in found[1:]] == [[0, 1, 2], [[0, 1, 2], [3, 4, 5]], [0, 2, 4]]


def test_a_tree_of_anything_else_is_refused(tmp_path):
    with pytest.raises(TypeError, match="cannot store a object"):
        save_tree(tmp_path / "t.safetensors", {"a": object()})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "foreign", "flipped"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    from safetensors.torch import save_file

    path = tmp_path / "t.safetensors"
    save_tree(path, {"a": torch.zeros(100)})
    whole = path.read_bytes()
    if damage == "foreign":
        save_file({"a": torch.zeros(2)}, path)
    else:
        contents = {"empty": b"", "cut": whole[:-7], "text": b"hello " * 9}
        path.write_bytes(contents.get(damage, bytes([255]) + whole[1:]))
    with pytest.raises(UserError, match=r"t\.safetensors is damaged or not a checkpoint of ours"):
        load_tree(path)
