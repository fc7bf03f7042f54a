import json
import os
import pickle
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rectified.data import load_images
from rectified.errors import UserError
from rectified.jobs.classifiers import (
    LARGEST,
    RECIPES,
    Architecture,
    build,
    check_outputs,
    load_weights,
    plain_batches,
    recipe,
    training_batches,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", seed=0, limit=100)


def small():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def trained():
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        state = small().state_dict()
        return {name: torch.rand(value.shape).to(value.dtype) for name, value in state.items()}


# ---- networks


@pytest.mark.parametrize("model", [name for name in RECIPES if "vgg" not in name])
def test_every_recipe_makes_a_classifier_of_the_data(model, digits):
    network = build(model, digits, seed=0)
    inputs, _ = next(iter(plain_batches(digits.test, digits, size=3, device=CPU)))
    check_outputs(network, inputs, 10)


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet20"])
@pytest.mark.parametrize("norm", [True, False])
def test_norms_can_be_had_or_left_out(model, norm, digits):
    network = build(model, digits, seed=0, norm=norm)
    found = any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in network.modules())
    assert found == norm


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone(digits):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, other = (build("mlp", digits, seed=s).state_dict() for s in (4, 4, 5))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_an_unknown_model_is_named():
    with pytest.raises(UserError, match=r"unknown model 'resnet'; choose from mlp, .*:factory"):
        recipe("resnet")


FACTORIES = """
from torch import nn
def all_of_it(**given): return Seen(given)
def some(num_classes, image_size): return Seen({"num_classes": num_classes, "size": image_size})
def none(): return nn.Linear(2, 2)
def wants(num_classes, width): return None
def number(): return 3
class Seen(nn.Module):
    def __init__(self, given): super().__init__(); self.given = given
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "factories.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("1 +")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("factories")
def test_a_factory_gets_what_it_has_parameters_for(digits):
    given = build("factories:all_of_it", digits, seed=0, norm=False).given
    assert given == {"num_classes": 10, "in_channels": 1, "image_size": (8, 8), "norm": False}
    assert build("factories:some", digits, seed=0).given == {"num_classes": 10, "size": (8, 8)}
    assert isinstance(build("factories:none", digits, seed=0), nn.Linear)


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere:factory", "cannot be imported .*No module named 'nowhere'.*write module:factory"),
        ("factories:missing", "cannot be imported .*missing"),
        ("broken:factory", "'broken:factory' cannot be imported .*invalid syntax"),
        (":factory", "cannot be imported .*Empty module name"),
        ("factories:wants", "cannot be called .*'width'.*a default"),
        ("factories:number", "must return an nn.Module, got int"),
    ],
)
def test_a_factory_that_makes_no_network_is_named(model, message, digits):
    with pytest.raises(UserError, match=message):
        build(model, digits, seed=0)


def test_a_network_must_return_a_score_for_every_class():
    with pytest.raises(UserError, match=r"must return 10 class scores an image.*got \(5,\)"):
        check_outputs(nn.Linear(4, 5), torch.zeros(2, 4), 10)


def test_a_network_must_read_the_images():
    with pytest.raises(UserError, match=r"cannot read images of shape \(1, 8, 8\) \(.*shape"):
        check_outputs(nn.Linear(4, 5), torch.zeros(2, 1, 8, 8), 10)


# ---- weights


@pytest.mark.parametrize("kind", ["safetensors", "plain", "state_dict", "model", "wrapped"])
def test_weights_are_read_from_whatever_people_keep_them_in(tmp_path, kind):
    state, network = trained(), small()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "wrapped":
        torch.save({f"module._orig_mod.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state if kind == "plain" else {kind: state, "epoch": 3}, path)
    load_weights(network, path)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("how", ["torch", "pickle", "renamed"])
def test_weights_that_would_run_code_are_refused_and_not_run(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("w.safetensors" if how == "renamed" else "w.pt")
    if how == "torch":
        torch.save({"0.weight": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"cannot be read safely .*: give a safetensors file"):
        load_weights(small(), path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100])
def test_damaged_weights_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"weights .*{name} cannot be read safely"):
        load_weights(small(), tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"lack '0\.bias', which the model has"),
        (lambda s: s.update(extra=torch.zeros(1)), "have 'extra', which the model lacks"),
        (
            lambda s: s.update({"0.weight": torch.zeros(2, 4)}),
            r"'0\.weight' has shape \(2, 4\), the model has \(2, 3\)",
        ),
    ],
)
def test_weights_of_another_network_are_named(tmp_path, change, message):
    state = trained()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    network, before = small(), small().state_dict()
    network.load_state_dict(before)
    with pytest.raises(UserError, match=message):
        load_weights(network, tmp_path / "w.safetensors")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    for name in ("list.pt", "numbers.pt"):
        with pytest.raises(UserError, match="are not a state_dict of tensors"):
            load_weights(small(), tmp_path / name)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no weights at .*nowhere\.pt"):
        load_weights(small(), tmp_path / "nowhere.pt")


# ---- batches


def test_only_training_batches_are_shuffled(digits):
    plain = plain_batches(digits.test, digits, size=100, device=CPU)
    labels = torch.cat([labels for _, labels in plain])
    assert torch.equal(labels, digits.test.labels)
    shuffled = training_batches(digits, 100, seed=0, augment=False, device=CPU)
    (first,), (second,) = (list(shuffled.epoch(number)) for number in (0, 1))
    assert not torch.equal(first[1], second[1])
    assert first[0].mean().abs() < 1e-3  # standardised as the training split is


# ---- architectures


def test_an_architecture_builds_the_network_of_its_data(digits):
    architecture = Architecture.of("cnn", digits, norm=True)
    assert architecture == Architecture("cnn", 10, 1, (8, 8), norm=True)
    ours, theirs = architecture.build(seed=3), build("cnn", digits, seed=3, norm=True)
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


def test_an_architecture_comes_back_from_json(digits):
    architecture = Architecture.of("mlp", digits, norm=False)
    assert Architecture.read(json.loads(json.dumps(asdict(architecture)))) == architecture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": None}, "a field is missing or of another type"),
        ({"image_size": [1, 2, 3]}, "a field is missing or of another type"),
        ({"model": ["mlp"]}, "a field is of another type"),
        ({"norm": 1}, "a field is of another type"),
        ({"num_classes": LARGEST + 1}, r"sizes must be in 1\.\.100000"),
        ({"in_channels": "3"}, r"sizes must be in 1\.\.100000"),
        ({"in_channels": 0}, r"sizes must be in 1\.\.100000"),
    ],
)
def test_an_architecture_that_no_network_has_is_refused(change, message):
    fields = {"model": "mlp", "num_classes": 2, "in_channels": 1, "image_size": [2, 2]}
    with pytest.raises(ValueError, match=message):
        Architecture.read({**fields, "norm": False, **change})


def test_only_named_models_are_ours():
    assert Architecture("mlp", 2, 1, (2, 2), norm=False).is_ours
    assert not Architecture("theirs:net", 2, 1, (2, 2), norm=False).is_ours
