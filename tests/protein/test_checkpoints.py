"""Checkpoints: the published layout loads by name, and nothing in it is run."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from rectified.errors import UserError
from rectified.protein.checkpoints import (
    Stub,
    infer_sizes,
    load_checkpoint,
    read_lightning,
    save_checkpoint,
)
from rectified.protein.frames import Frames
from rectified.protein.model import FlowModel, ModelSizes
from rectified.protein.quaternion import uniform

from .conftest import SMALL

CONFIG = """
model:
  node_embed_size: 32
  node_features:
    c_timestep_emb: ${model.node_features.c_pos_emb}
    c_pos_emb: 16
  ipa:
    c_s: ${model.node_embed_size}
    seq_tfmr_num_heads: 4
experiment:
  name: ${now:%Y-%m-%d}
"""


class Config:
    """Stands for an OmegaConf object: its pickle names a class that is not installed."""

    def __reduce__(self):
        return (Config, (), {"_content": {"a": 1}, "_metadata": None})


def lightning(model: FlowModel, folder: Path, **more) -> Path:
    """A checkpoint as Lightning writes it, with objects of foreign classes in it."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    content = {
        "epoch": 3,
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []}],
        "hyper_parameters": {"cfg": Config()},
        **more,
    }
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "qflow.ckpt")
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def frames() -> Frames:
    generator = torch.Generator().manual_seed(1)
    return Frames(torch.randn(1, 9, 3, generator=generator), uniform(1, 9, generator=generator))


def test_a_published_folder_gives_the_same_network(small_model, tmp_path):
    found = load_checkpoint(lightning(small_model, tmp_path / "run"))
    assert found.sizes == SMALL
    assert not found.training
    t = torch.tensor([0.3])
    assert torch.equal(found(frames(), t).translations, small_model(frames(), t).translations)
    assert torch.equal(
        load_checkpoint(tmp_path / "run" / "qflow.ckpt").state_dict()["trunk.ipa_0.head_weights"],
        small_model.state_dict()["trunk.ipa_0.head_weights"],
    )


def test_weights_of_other_modules_are_left_alone(small_model, tmp_path):
    folder = lightning(small_model, tmp_path / "run")
    content = torch.load(folder / "qflow.ckpt", weights_only=False)
    content["state_dict"]["_folding_model.x"] = torch.zeros(3)
    torch.save(content, folder / "qflow.ckpt")
    assert load_checkpoint(folder).sizes == SMALL


@pytest.mark.parametrize(
    "sizes",
    [
        ModelSizes(node=64, pair=32, hidden=16, heads=4, blocks=1),
        ModelSizes(node=48, pair=16, position=32, time=32, feature=8, hidden=8, heads=2, blocks=2),
        SMALL,
    ],
)
def test_sizes_follow_from_shapes(sizes):
    state = FlowModel(sizes).state_dict()
    given = {"node_features": {"c_timestep_emb": sizes.time}}
    assert infer_sizes(state, given, source=Path("x")) == sizes


def test_safetensors_of_ours_are_written_and_read(small_model, tmp_path):
    save_checkpoint(small_model, tmp_path / "model.safetensors")
    for place in (tmp_path / "model.safetensors", tmp_path):
        found = load_checkpoint(place)
        assert found.sizes == SMALL
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                found.state_dict().values(), small_model.state_dict().values(), strict=True
            )
        )


class Hostile:
    """Runs a program when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return (self.call, self.arguments)


@pytest.mark.parametrize("call", ["os.system", "builtins.exec", "builtins.eval", "posix.system"])
def test_hostile_pickles_run_nothing(small_model, tmp_path, call):
    import importlib

    module, _, name = call.rpartition(".")
    function = getattr(importlib.import_module(module), name)
    target = tmp_path / "was_run"
    words = f"touch {target}" if name == "system" else f"open({str(target)!r}, 'w')"
    folder = lightning(small_model, tmp_path / "run", payload=Hostile(function, words))
    found = load_checkpoint(folder)  # the weights are there, the payload is an empty stand-in
    assert found.sizes == SMALL
    assert not target.exists()
    pickle_itself = read_lightning(folder / "qflow.ckpt")["payload"]
    assert isinstance(pickle_itself, Stub)


@pytest.mark.parametrize("name", ["getattr", "__import__", "globals", "open"])
def test_no_name_is_looked_up(small_model, tmp_path, name):
    """A pickle that asks for `builtins.NAME` and calls what it gets with a path."""
    target = tmp_path / "written"
    program = (
        b"\x80\x02}X\x0a\x00\x00\x00state_dictcbuiltins\n"
        + name.encode()
        + b"\n(X"
        + len(str(target)).to_bytes(4, "little")
        + str(target).encode()
        + b"X\x01\x00\x00\x00wtRs."
    )
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", program)
    with pytest.raises(UserError, match="it has no state_dict"):
        read_lightning(tmp_path / "x.ckpt")
    assert not target.exists()


def test_a_stub_takes_anything_and_does_nothing():
    stub = Stub(1, a=2)
    stub["key"] = stub
    stub.append(1), stub.extend([1]), stub.add(1), stub.__setstate__({"a": 1})
    assert isinstance(stub(3), Stub)
    assert {stub: 1}[stub] == 1
    assert not vars(stub)


def broken(folder: Path, change: str) -> Path:
    path = folder / "qflow.ckpt"
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif change == "empty":
        path.write_bytes(b"")
    elif change == "text":
        path.write_text("not a checkpoint")
    elif change == "plain pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}}))
    elif change == "no pickle inside":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/version", "3")
    else:
        rebuilt = path.with_suffix(".new")
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(rebuilt, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("data/0"):
                    content = content[:-4]
                new.writestr(name, content)
        rebuilt.replace(path)
    return path


@pytest.mark.parametrize(
    "change", ["truncated", "empty", "text", "plain pickle", "no pickle inside", "short tensor"]
)
def test_a_damaged_checkpoint_is_one_line_that_names_it(small_model, tmp_path, change):
    path = broken(lightning(small_model, tmp_path / "run"), change)
    with pytest.raises(UserError, match=r"qflow\.ckpt") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value).strip()


def test_a_tensor_that_repeats_its_data_without_end_is_refused(small_model, tmp_path):
    large = torch.zeros(1).expand(10**6, 10**6)  # four terabytes once it is copied
    folder = lightning(small_model, tmp_path / "c", large=large)
    with pytest.raises(UserError, match="reaches beyond its data"):
        load_checkpoint(folder)


def test_a_pickle_that_remembers_more_than_it_has_seen_is_refused(tmp_path):
    path = tmp_path / "memo.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("memo/data.pkl", b"\x80\x02}r\xff\xff\xff\x7f.")  # memo of 16 gigabytes
    with pytest.raises(UserError, match="it remembers object 2147483647 after 2 steps"):
        load_checkpoint(path)


def test_sizes_that_no_weights_have_take_no_memory(small_model, tmp_path):
    from safetensors.torch import save_file

    sizes = {**asdict(SMALL), "node": 10**7}
    path = tmp_path / "model.safetensors"
    save_file(dict(small_model.state_dict()), path, {"sizes": json.dumps(sizes)})
    with pytest.raises(UserError, match=r"must be \[.*10000000"):
        load_checkpoint(path)


def test_a_tensor_that_reaches_beyond_its_data_is_refused(small_model, tmp_path):
    from rectified.protein import checkpoints

    storage = torch.zeros(4)
    with pytest.raises(UserError, match="reaches beyond its data"):
        checkpoints._rebuild_tensor(storage, 0, (5,), (1,))
    with pytest.raises(UserError, match="reaches beyond its data"):
        checkpoints._rebuild_tensor(storage, -1, (2,), (1,))
    assert checkpoints._rebuild_tensor(storage, 2, (2,), (1,)).shape == (2,)


def altered(model: FlowModel, folder: Path, change) -> Path:
    lightning(model, folder)
    content = torch.load(folder / "qflow.ckpt", weights_only=False)
    change(content["state_dict"])
    torch.save(content, folder / "qflow.ckpt")
    return folder


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda s: s.pop("model.trunk.bb_update_0.linear.bias"),
            "lacks 1 weights, among them trunk",
        ),
        (
            lambda s: s.update({"model.extra": torch.zeros(1)}),
            "1 weights too many, among them extra",
        ),
        (
            lambda s: s.update({"model.trunk.post_tfmr_1.weight": torch.zeros(5, 5)}),
            r"trunk.post_tfmr_1.weight must be \[32, 32\], got \[5, 5\]",
        ),
        (lambda s: s.pop("model.trunk.ipa_0.head_weights"), "these are not ReQFlow's weights"),
        (lambda s: s.clear(), "no weight's name begins with 'model.'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(small_model, tmp_path, change, reason):
    with pytest.raises(UserError, match=reason):
        load_checkpoint(altered(small_model, tmp_path / "run", change))


def test_settings_that_are_no_settings_are_refused(small_model, tmp_path):
    folder = lightning(small_model, tmp_path / "run")
    (folder / "config.yaml").write_text("model: [unclosed")
    with pytest.raises(UserError, match=r"config\.yaml is not a YAML file"):
        load_checkpoint(folder)
    (folder / "config.yaml").write_text("#" * 1_000_001)
    with pytest.raises(UserError, match="too large for a file of settings"):
        load_checkpoint(folder)


def test_where_no_checkpoint_is_one_is_asked_for(small_model, tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds neither a \.ckpt nor a model\.safetensors"):
        load_checkpoint(tmp_path)
    folder = lightning(small_model, tmp_path / "run")
    (folder / "other.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="holds 2 checkpoints: name one of them"):
        load_checkpoint(folder)


def test_damaged_weights_of_ours_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged, or not weights of a protein flow"):
        load_checkpoint(tmp_path)
    from safetensors.torch import save_file

    for sizes in (None, "[" * 100_000, '{"node": 1e999}', '{"node": []}'):
        metadata = None if sizes is None else {"sizes": sizes}
        save_file({"a": torch.zeros(1)}, str(tmp_path / "model.safetensors"), metadata)
        with pytest.raises(UserError, match="damaged, or not weights of a protein flow"):
            load_checkpoint(tmp_path)
