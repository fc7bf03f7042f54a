"""The study of estimators: rows, pairing, controls, resuming, and the network on bits."""

import math
import re
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from rectified.binary.estimators import ESTIMATORS, ClippedSTE, Scheme
from rectified.binary.layers import binary_layers
from rectified.cli import main
from rectified.data import load_images
from rectified.errors import UserError
from rectified.inference.bits import load_packed
from rectified.jobs.binarize import report, training
from rectified.jobs.binarize.report import summarise
from rectified.jobs.binarize.settings import NETWORKS, BinarizeConfig, resolve
from rectified.jobs.binarize.training import make_network
from rectified.jobs.classifiers import load_weights, plain_batches
from rectified.jobs.job import open_run
from rectified.runs import read_json, read_results
from rectified.statistics import Verdict
from rectified.training import classification_quality, evaluate
from tests.holding import family, has_ended, held, until

FAST = "--limit 300 --epochs 2 --device cpu --quiet"
ROW = ["seed", "estimator", "weight_bits", "activation_bits", "epoch", "accuracy"]
ROW += ["estimating_error", "gradient_instability"]


def run(folder, flags):
    assert main(["binarize", "--out", str(folder), *FAST.split(), *flags.split()]) == 0
    return read_results(folder)


def of(results, **wanted):
    return [row for row in results["rows"] if wanted.items() <= row.items()]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "run"
    return folder, run(folder, "--estimator ste,reste,float --seeds 3 --pack")


def test_results_have_exactly_the_public_fields(study):
    _, results = study
    assert list(results) == [
        *("verb", "config", "environment", "rows", "summary", "verdicts", "pack")
    ]
    assert all(list(row) == ROW for row in results["rows"])
    assert len(results["rows"]) == 3 * 3 * 2
    assert list(results["summary"][0]) == ["estimator", "accuracy_mean", "accuracy_ci95", "n"]
    assert list(results["pack"]) == [
        "bytes_float",
        "bytes_packed",
        "max_abs_difference",
        "milliseconds",
    ]
    for row in results["rows"]:
        assert 0 <= row["accuracy"] <= 1
        bits = (32, 32) if row["estimator"] == "float" else (1, 1)
        assert (row["weight_bits"], row["activation_bits"]) == bits
        assert (row["estimating_error"] is None) == (row["estimator"] == "float")


def test_the_summary_is_of_the_last_epoch(study):
    _, results = study
    for line in results["summary"]:
        accuracy = [row["accuracy"] for row in of(results, estimator=line["estimator"], epoch=2)]
        low, high = stats.ttest_1samp(accuracy, 0.0).confidence_interval(0.95)
        assert line["accuracy_mean"] == pytest.approx(np.mean(accuracy))
        assert line["accuracy_ci95"] == pytest.approx((high - low) / 2)
        assert line["n"] == 3


def test_estimators_are_compared_seed_by_seed(study):
    _, results = study
    (verdict,) = results["verdicts"]
    # full precision is a ceiling, not a rival
    assert (verdict["subject"], verdict["base"]) == ("reste", "ste")
    accuracy = {
        name: [row["accuracy"] for row in of(results, estimator=name, epoch=2)]
        for name in ("reste", "ste")
    }
    reference = stats.ttest_rel(accuracy["reste"], accuracy["ste"])
    assert verdict["p"] == pytest.approx(reference.pvalue)


def test_the_saved_network_is_the_one_that_was_measured(study):
    folder, results = study
    saved = read_json(folder / "details.json")["saved"]
    seed = int(saved["seed"])
    data = load_images("digits", seed=seed, limit=300)
    config = resolve(BinarizeConfig(limit=300, epochs=2))
    network = make_network(config, data, saved["estimator"], 9)
    load_weights(network, folder / "model.safetensors")
    batches = plain_batches(data.test, data, device=torch.device("cpu"))
    found = evaluate(network, classification_quality, batches, device="cpu")
    (row,) = of(results, seed=seed, estimator=saved["estimator"], epoch=2)
    assert found["accuracy"] == pytest.approx(row["accuracy"])
    packed = load_packed(folder / "packed.safetensors")
    x, _ = next(iter(batches))
    with torch.no_grad():
        assert (packed(x) - network.eval()(x)).abs().max() <= 2e-6
    assert results["pack"]["max_abs_difference"] <= 2e-6
    assert results["pack"]["bytes_packed"] == (folder / "packed.safetensors").stat().st_size
    assert set(results["pack"]["milliseconds"]) == {"batch_1", "batch_16"}


def test_arms_of_a_seed_start_from_the_same_weights():
    data = load_images("digits", seed=0, limit=300)
    arms = ("ste", "reste", "float")
    config = resolve(BinarizeConfig(limit=300, estimator=arms))
    states = [make_network(config, data, name, 4).state_dict() for name in arms]
    for name, value in states[2].items():
        assert torch.equal(states[0][name], value)
        assert torch.equal(states[1][name], value)


def test_the_page_needs_nothing_else_and_says_what_was_found(study):
    folder, results = study
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    for verdict in results["verdicts"]:
        assert report.card(Verdict(**verdict)).title in page
    text = open_run(folder).text
    for line in results["summary"]:
        assert f"{100 * line['accuracy_mean']:.2f}%" in text
        assert f"{100 * line['accuracy_mean']:.2f}%" in page
    for word in ("Gradient instability", "Layer by layer", "On bits", "Settings", "ste_gain"):
        assert word in page


def test_the_combined_report_shows_the_run_fully(study):
    from rectified.jobs.report import combined

    folder, _ = study
    page = combined([folder])
    for title in ("What was found", "Over training", "Layer by layer", "On bits"):
        assert f"run: {title}" in page


def test_indicators_of_every_layer_and_epoch_are_kept(study):
    folder, _ = study
    layers = read_json(folder / "details.json")["layers"]
    assert {row["estimator"] for row in layers} == {"ste", "reste"}
    assert len(layers) == 2 * 3 * 2 * 4  # estimators, seeds, epochs, weights and inputs of 2 layers


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_every_arm_trains(name, tmp_path):
    results = run(tmp_path / "run", f"--estimator {name} --seed 1 --epochs 1")
    (row,) = results["rows"]
    assert math.isfinite(row["accuracy"])
    assert results["summary"][0]["accuracy_ci95"] is None


def test_a_row_in_the_table_is_all_that_the_job_needs_of_an_estimator(monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "toy", Scheme("A toy", partial(ClippedSTE, 0.7)))
    data = load_images("digits", seed=0, limit=300)
    model = make_network(resolve(BinarizeConfig(estimator=("toy",))), data, "toy", 0)
    assert {layer.weight_estimator.c for layer in binary_layers(model).values()} == {0.7}
    assert report.named("toy") == "A toy"
    monkeypatch.undo()
    with pytest.raises(UserError, match="unknown estimator 'toy'; choose from ste, clipped_ste"):
        resolve(BinarizeConfig(estimator=("toy",)))
    assert report.named("toy") == "toy"  # of a run that another version wrote


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_is_binary_between_its_ends(name):
    data = load_images("digits", seed=0, limit=300)
    model = make_network(resolve(BinarizeConfig(model=name)), data, "reste", 0)
    count = {"mlp": 1, "cnn": 2, "resnet20": 18, "resnet20_bi_real": 18, "vgg_small": 5}[name]
    assert len(binary_layers(model)) == count


def test_inputs_of_32_bits_and_other_scales(tmp_path):
    flags = "--estimator reste --seed 0 --epochs 1 --activation-bits 32 --scale layer --pack"
    results = run(tmp_path / "run", flags)
    assert results["rows"][0]["activation_bits"] == 32
    layers = read_json(tmp_path / "run" / "details.json")["packing"]["layers"]
    assert {layer["reason"] for layer in layers} == {"its inputs have 32 bits"}
    assert results["pack"]["max_abs_difference"] <= 1e-5


def test_somebodys_own_network(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32),\n"
        "        nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    results = run(tmp_path / "run", "--model mine:make --estimator reste --seed 0 --pack")
    assert results["pack"]["max_abs_difference"] <= 2e-6


# ---- going on


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def test_a_run_that_was_stopped_goes_on_to_the_same_result(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", "--estimator ste,reste --seeds 2")
    calls = 0
    fit = sys.modules["rectified.jobs.binarize.training"].fit

    def stopping(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == 6:  # in the second epoch of the third training
            raise KeyboardInterrupt
        return fit(*arguments, **named)

    monkeypatch.setattr("rectified.jobs.binarize.training.fit", stopping)
    folder = tmp_path / "stopped"
    flags = [*FAST.split(), "--estimator", "ste,reste", "--seeds", "2"]
    assert main(["binarize", "--out", str(folder), *flags]) == 130
    assert main(["binarize", "--resume", str(folder), "--quiet"]) == 0
    assert calls == 6 + 3  # the epoch that was stopped, and the last training
    assert read_results(folder)["rows"] == whole["rows"]
    assert (
        read_json(folder / "details.json")["layers"]
        == read_json(tmp_path / "whole" / "details.json")["layers"]
    )
    assert not (folder / "checkpoint").exists()


def test_processes_side_by_side_find_the_same(tmp_path):
    flags = "--estimator ste,reste --seed 0 --epochs 1"
    alone = run(tmp_path / "alone", flags)
    together = run(tmp_path / "together", f"{flags} --workers 2")
    assert without_time(alone["rows"]) == without_time(together["rows"])


def test_a_killed_run_leaves_no_workers_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "rectified", "binarize", "--limit", "300", "--epochs", "3"]
    command += ["--estimator", "ste,reste", "--seed", "0", "--workers", "2", "--quiet"]
    command += ["--out", str(folder)]
    with (
        held("checkpoint/*-0.safetensors", 2) as hold,  # a worker is in its second epoch
        subprocess.Popen(command, stderr=subprocess.PIPE, env=hold.environment()) as process,
    ):
        hold.wait(process)
        children = family(process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
        until(lambda: all(map(has_ended, children)))
    assert process.returncode == 143
    assert b"go on with: rectified binarize --resume" in said


# ---- words


def test_a_card_follows_its_verdict():
    def card(difference, low, high, p, outcome):
        names = ("reste", "ste", "accuracy", "higher")
        return report.card(Verdict(*names, difference, low, high, p, 8, outcome))

    above = card(0.02, 0.01, 0.03, 0.01, "gain")
    assert (above.title, above.tone) == ("ReSTE is above STE", "gain")
    below = card(-0.02, -0.03, -0.01, 0.01, "loss")
    assert (below.title, below.tone) == ("ReSTE is below STE", "loss")
    assert "one seed: no interval" in card(0.02, None, None, None, "no evidence").text


def test_the_network_of_a_run_is_the_one_it_saved(study):
    folder, _ = study
    network = open_run(folder).network()
    packed = load_packed(folder / "packed.safetensors")
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert (packed(x) - network(x)).abs().max() <= 2e-6


def test_a_summary_of_nothing_but_the_last_epoch():
    rows = [
        {"seed": 0, "estimator": "ste", "epoch": 1, "accuracy": 0.9},
        {"seed": 0, "estimator": "ste", "epoch": 2, "accuracy": 0.5},
    ]
    assert summarise(rows)[0]["accuracy_mean"] == 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--estimator what", "unknown estimator 'what'; choose from ste, clipped_ste"),
        ("--estimator ,", "estimator must name at least one; choose from ste"),
        ("--estimator ste,ste", "estimator must name each once, got ste, ste"),
        ("--model resnet18", "unknown model 'resnet18'; choose from mlp, cnn, resnet20"),
        ("--model nothing:here", "model 'nothing:here' cannot be imported"),
        ("--weight-bits 2", "weight_bits must be 1, got 2"),
        ("--activation-bits 8", "activation_bits must be 1 or 32, got 8"),
        ("--pack --estimator float", "pack needs a network with 1-bit layers"),
        ("--epochs 0", "epochs must be at least 1, got 0"),
        ("--limit 1", "limit must be at least 2, got 1"),
        ("--batch-size 1", "batch_size must be at least 2, got 1"),
        ("--workers 0", "workers must be at least 1, got 0"),
        ("--warmup 1", "warmup must be in [0, 1), got 1.0"),
        ("--learning-rate -1", "learning_rate must be positive, got -1.0"),
        ("--seeds 0", "seeds must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(flags, message, tmp_path, capsys):
    assert main(["binarize", "--out", str(tmp_path / "run"), *flags.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_is_told(tmp_path, capsys):
    flags = "--estimator float --seed 0 --learning-rate 1e30 --model mlp"
    assert main(["binarize", "--out", str(tmp_path / "run"), *FAST.split(), *flags.split()]) == 2
    assert "lower learning_rate" in capsys.readouterr().err


def test_weights_that_became_no_numbers_are_told(monkeypatch, tmp_path):
    def spoil(task, plan, model, *_):
        next(model.parameters()).data.fill_(math.nan)

    monkeypatch.setattr("rectified.jobs.binarize.training._train_on", spoil)
    plan = resolve(BinarizeConfig())
    task = training.Task(plan.config, plan.source, "ste", 0, tmp_path / "store")
    with pytest.raises(UserError, match=r"ste/0: '0\.weight' became NaN or infinite"):
        training.train(task)
