"""Two processes, started as a user starts them, find what one process finds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rectified.cli import main
from rectified.runs import read_results
from rectified.training import FitConfig, classification, fit
from tests.training.material import Noise, network

PRUNE = [
    "prune",
    "--cycles",
    "1",
    "--epochs",
    "1",
    "--ap",
    "off,lite",
    "--seeds",
    "2",
    "--device",
    "cpu",
    "--out",
]
# uneven slices, and a batch with fewer examples than processes
SIZES = (8, 5, 1)
SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from training.material import Noise, images_network, network
from rectified.cli import main
from rectified.training import FitConfig, accelerator, classification, fit
process = accelerator("cpu")
model, normed = network(), images_network()
losses = fit(model, classification, Noise({sizes}), FitConfig(epochs=2, clip=1.0, device="cpu"))
fit(normed, classification, Noise(shape=(3, 8, 8)), FitConfig(epochs=1, device="cpu"))
code = main({prune} + [{out!r} + "/run"])
found = [process.num_processes, losses, model.state_dict(), normed.state_dict(), code]
torch.save(found, f"{out}/{{process.process_index}}.pt")
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What both processes found, and the folder of their run."""
    out = tmp_path_factory.mktemp("together")
    tests = str(Path(__file__).parent)
    script = out / "both.py"
    script.write_text(SCRIPT.format(tests=tests, sizes=SIZES, prune=PRUNE, out=str(out)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, "2", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)], out / "run", done.stdout


def test_there_are_two_processes(together):
    (first, second), _, _ = together
    assert first[0] == second[0] == 2


def test_two_processes_train_as_one_does(together):
    (first, _), _, _ = together
    alone = network()
    config = FitConfig(epochs=2, clip=1.0, device="cpu")
    assert first[1] == pytest.approx(fit(alone, classification, Noise(SIZES), config), rel=1e-5)
    for name, value in alone.state_dict().items():
        assert torch.allclose(first[2][name], value, atol=1e-5)


def test_processes_end_with_equal_weights_and_statistics(together):
    (first, second), _, _ = together
    for one, other in zip(first[2:4], second[2:4], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_prune_as_one_does_and_write_once(together, tmp_path):
    (first, second), path, said = together
    assert first[4] == second[4] == 0
    assert said.count("report: ") == 1
    assert main([*PRUNE, str(tmp_path / "run"), "--together", "1", "--quiet"]) == 0
    ours, theirs = (read_results(folder)["rows"] for folder in (path, tmp_path / "run"))
    for one, other in zip(ours, theirs, strict=True):
        for row in (one, other):
            row.pop("seconds")
        # an example more or less in 359 is a matter of rounding
        assert one.pop("accuracy") == pytest.approx(other.pop("accuracy"), abs=0.006)
        assert one == pytest.approx(other, abs=1e-3)
    saved, alone = (load_file(f / "model.safetensors") for f in (path, tmp_path / "run"))
    for name, weights in saved.items():
        assert torch.equal(weights == 0, alone[name] == 0)
    events = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "start" for event in events) == 1
