"""A deployed network is smaller, and computes what the pruned one did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rectified.cli import main
from rectified.errors import UserError
from rectified.jobs.deploy import Architecture, Deployment, deploy, load_lean
from rectified.pruning import Snapshot, apply_, full_masks, magnitude, prune
from rectified.runs import Run

CNN = Architecture("cnn", 10, 1, (8, 8), True)


def pruned(architecture: Architecture, fraction: float = 0.97) -> nn.Module:
    """A network with lively norms, most of its weights dropped."""
    torch.manual_seed(0)
    network = architecture.build()
    network(torch.rand(64, architecture.in_channels, *architecture.image_size))
    masks = full_masks(network)
    state = network.state_dict()
    scores = magnitude(Snapshot(network, state, state, masks))
    apply_(network, prune(masks, scores, fraction))
    return network.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.begin("prune", {}, {})
    return run


def deployed(network: nn.Module, architecture: Architecture, folder: Run) -> Deployment:
    torch.manual_seed(1)
    folder.write_weights(network.state_dict(), {})
    shape = (architecture.in_channels, *architecture.image_size)
    return deploy(network, architecture, torch.randn(32, *shape), folder)


@pytest.mark.parametrize(
    "architecture", [CNN, Architecture("mlp", 10, 1, (8, 8), False)], ids=lambda a: a.model
)
def test_the_lean_network_computes_the_same(architecture: Architecture, folder: Run) -> None:
    found = deployed(pruned(architecture), architecture, folder)
    assert found.sizes["max_abs_difference"] < 1e-5
    assert found.sizes["bytes_lean"] < found.sizes["bytes_dense"] / 4
    assert set(found.sizes) == {
        "bytes_dense",
        "bytes_lean",
        "max_abs_difference",
        "milliseconds",
    }
    assert set(found.sizes["milliseconds"]) == {"batch_1", "batch_16"}
    assert all(t > 0 for way in found.sizes["milliseconds"].values() for t in way.values())


def test_every_layer_is_timed_at_both_batches_in_every_engine(folder: Run) -> None:
    pytest.importorskip("onnxruntime")
    found = deployed(pruned(CNN), CNN, folder)
    for layer in found.layers:
        assert set(layer["milliseconds"]) == {"batch_1", "batch_16"}
        for batch, times in layer["milliseconds"].items():
            assert {"dense", "onnxruntime", layer["engines"][batch]} <= set(times)


def test_parameters_are_counted_at_every_step(folder: Run) -> None:
    network = pruned(CNN)
    found = deployed(network, CNN, folder)
    assert found.parameters["dense"] == sum(p.numel() for p in network.parameters())
    assert found.parameters["nonzero"] <= found.parameters["compact"] < found.parameters["dense"]


def test_a_fresh_process_loads_the_lean_network(folder: Run) -> None:
    network = pruned(CNN)
    deployed(network, CNN, folder)
    example = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)
    script = (
        "import sys, json, torch; from pathlib import Path\n"
        "from rectified.jobs.deploy import load_lean\n"
        "x = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)\n"
        "with torch.no_grad(): print(json.dumps(load_lean(Path(sys.argv[1]))(x).tolist()))"
    )
    command = [sys.executable, "-c", script, str(folder.path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with torch.no_grad():
        torch.testing.assert_close(
            torch.tensor(json.loads(said)), network(example), atol=1e-5, rtol=1e-5
        )


def test_the_onnx_file_computes_the_same(folder: Run) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network = pruned(CNN)
    deployed(network, CNN, folder)
    session = onnxruntime.InferenceSession(
        folder.path / "lean.onnx", providers=["CPUExecutionProvider"]
    )
    example = torch.randn(3, 1, 8, 8)
    (given,) = session.run(None, {"images": example.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(given), network(example), atol=1e-4, rtol=1e-4)


class Curious(nn.Module):
    """Its forward asks about values, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return self.layer(flat if flat.sum() > 0 else -flat)


def test_a_network_without_a_readable_graph_is_deployed_at_full_size(folder: Run) -> None:
    found = deployed(Curious().eval(), CNN, folder)
    assert any("no channel was removed" in note for note in found.notes)
    assert found.sizes["max_abs_difference"] < 1e-5


def test_somebodys_own_model_must_be_passed(folder: Run) -> None:
    network = pruned(CNN)
    own = Architecture("theirs:make", 10, 1, (8, 8), True)
    deployed(network, own, folder)
    with pytest.raises(UserError, match="pass the network"):
        load_lean(folder.path)
    assert isinstance(load_lean(folder.path, network), nn.Module)


def test_a_missing_description_is_a_users_mistake(folder: Run) -> None:
    deployed(pruned(CNN), CNN, folder)
    (folder.path / "lean.json").unlink()
    with pytest.raises(UserError, match=r"lean\.json cannot be read"):
        load_lean(folder.path)


def test_the_command_adds_deployment_to_results_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--model", "cnn", "--cycles", "2", "--rate", "0.7", "--epochs", "1", "--seed", "0"]
    code = main(
        ["prune", *flags, "--ap", "off", "--deploy", "--drop-never-fires", "--out", str(out)]
    )
    assert code == 0
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {
        "verb",
        "config",
        "environment",
        "rows",
        "summary",
        "verdicts",
        "deploy",
    }
    assert set(results["deploy"]) == {
        "bytes_dense",
        "bytes_lean",
        "max_abs_difference",
        "milliseconds",
    }
    assert results["deploy"]["bytes_dense"] == (out / "model.safetensors").stat().st_size
    page = (out / "report.html").read_text()
    for shown in (page, capsys.readouterr().out):
        assert "times smaller on disk" in shown
        assert "times the dense speed at batch 16" in shown
    assert "never fired on" in page
