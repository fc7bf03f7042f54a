"""The network of a finished run, built again."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from rectified.errors import UserError
from rectified.jobs.job import open_run
from rectified.runs import read_json, write_text


@pytest.fixture
def folder(study, tmp_path):
    """A copy of a finished run."""
    copy = tmp_path / "run"
    shutil.copytree(study[0], copy)
    return copy


def change(file, **values):
    """Change entries of a JSON file; None removes one."""
    contents = {**read_json(file), **values}
    write_text(file, json.dumps({k: v for k, v in contents.items() if v is not None}))


def has_the_saved_weights(network, folder):
    saved = load_file(folder / "model.safetensors")
    own = network.state_dict()
    return own.keys() == saved.keys() and all(torch.equal(own[name], saved[name]) for name in own)


def test_a_finished_run_gives_its_network_back(folder):
    network = open_run(folder).network()
    assert has_the_saved_weights(network, folder)
    assert not network.training
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_run_of_version_0_1_reads_its_data_again(folder):
    change(folder / "details.json", architecture=None)
    assert has_the_saved_weights(open_run(folder).network(), folder)


def test_a_file_runs_no_code_of_others(folder):
    architecture = read_json(folder / "details.json")["architecture"]
    change(folder / "details.json", architecture={**architecture, "model": "theirs:make"})
    with pytest.raises(UserError, match=r"'theirs:make' is not ours.*load_weights"):
        open_run(folder).network()


@pytest.mark.parametrize("architecture", ["mlp", {}, {"model": "mlp"}])
def test_a_damaged_architecture_is_named(folder, architecture):
    change(folder / "details.json", architecture=architecture)
    with pytest.raises(UserError, match=r"details\.json is damaged \(a field is missing"):
        open_run(folder).network()


def test_missing_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights at"):
        open_run(folder).network()
