"""The data of flows: read once, split by every seed."""

import numpy as np
import pytest
import torch

from rectified.data import readers
from rectified.jobs.flow import data
from rectified.jobs.flow.data import FlowData, is_points
from tests.jobs.flow.running import run


def counted(monkeypatch, owner, name):
    """The calls of a function, while it does what it does."""
    plain, calls = getattr(owner, name), []
    monkeypatch.setattr(owner, name, lambda *given: calls.append(given) or plain(*given))
    return calls


@pytest.mark.usefixtures("no_figures", "untrained")
def test_a_run_reads_its_points_once(tmp_path, monkeypatch):
    np.save(tmp_path / "to.npy", np.random.default_rng(0).standard_normal((60, 2)))
    calls = counted(monkeypatch, data, "read_points")
    run(tmp_path / "run", f"--data {tmp_path / 'to.npy'} --seeds 2 --rounds 1")
    assert len(calls) == 1


@pytest.mark.usefixtures("no_figures", "untrained")
def test_a_run_opens_its_images_once(tmp_path, monkeypatch):
    calls = counted(monkeypatch, readers, "_open")
    run(tmp_path / "run", "--data digits --seeds 2 --rounds 1")
    assert len(calls) == 1


def test_every_seed_has_a_split_of_its_own():
    both = FlowData("digits", "gaussian", limit=50)
    one, other = (both.transfer(seed=seed, many=10).train for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(one, both.transfer(seed=0, many=10).train)


def test_standardised_points_come_back_in_their_own_unit():
    transfer = FlowData("moons", "gaussian", limit=500).transfer(seed=0, many=50)
    torch.testing.assert_close(transfer.train.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(transfer.train.std(0), torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(transfer.unscaled(transfer.train), transfer.target.train)


def test_held_out_source_points_are_not_those_of_training(tmp_path):
    np.save(tmp_path / "from.npy", np.arange(40.0).reshape(20, 2))
    np.save(tmp_path / "to.npy", np.arange(40.0).reshape(20, 2))
    names = (str(tmp_path / name) for name in ("to.npy", "from.npy"))
    transfer = FlowData(*names).transfer(seed=0, many=50)
    held = {tuple(row) for row in transfer.draw(0, 50, held_out=True).tolist()}
    trained = {tuple(row) for row in transfer.draw(0, 500).tolist()}
    assert held
    assert trained
    assert not held & trained
    assert is_points("x.npy")
