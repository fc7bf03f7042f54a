"""The study: every score and arm, the same densities, and numbers that others can compute again."""

import numpy as np
import pytest
import torch
from scipy import stats

from rectified.data import load_images, readers
from rectified.errors import UserError
from rectified.jobs.classifiers import build, plain_batches
from rectified.jobs.prune.runner import State
from rectified.jobs.prune.settings import PruneConfig, resolve
from rectified.jobs.prune.study import summarise
from rectified.pruning import scores
from rectified.pruning.activate import ARMS
from rectified.pruning.scores import SCORES
from rectified.runs import read_json
from rectified.training import classification_quality, evaluate
from tests.jobs.prune.studies import of, prune, quick

ROW = ["seed", "score", "ap", "cycle", "density", "accuracy", "loss"]
ROW += ["dynamic_dnr", "static_dnr", "seconds"]
SUMMARY = ["score", "ap", "cycle", "density", "accuracy_mean", "accuracy_ci95"]
SUMMARY += ["dynamic_dnr_mean", "n"]


# ---- what is written


def test_results_have_exactly_the_public_fields(study):
    _, results = study
    assert list(results) == ["verb", "config", "environment", "rows", "summary", "verdicts"]
    assert all(list(row) == ROW for row in results["rows"])
    assert all(list(row) == SUMMARY for row in results["summary"])
    assert len(results["rows"]) == 4 * 3 * 4
    assert len(results["summary"]) == 4 * 4
    rates = ("density", "accuracy", "dynamic_dnr", "static_dnr")
    assert all(0 <= row[name] <= 1 for row in results["rows"] for name in rates)


def test_all_arms_have_the_same_density_in_every_cycle(study):
    _, results = study
    weights = 64 * 64 + 64 * 64 + 64 * 10
    kept = weights
    for cycle in range(4):
        assert {row["density"] for row in of(results, cycle=cycle)} == {kept / weights}
        kept -= round(0.2 * kept)


def test_all_arms_share_their_dense_network(study):
    _, results = study
    for seed in range(3):
        dense = [(row["accuracy"], row["loss"]) for row in of(results, seed=seed, cycle=0)]
        assert len(dense) == 4
        assert len(set(dense)) == 1


def test_the_summary_is_what_scipy_makes_of_the_rows(study):
    _, results = study
    for line in results["summary"]:
        members = of(results, **{key: line[key] for key in ("score", "ap", "cycle")})
        accuracy = [row["accuracy"] for row in members]
        low, high = stats.ttest_1samp(accuracy, 0.0).confidence_interval(0.95)
        assert line["accuracy_mean"] == pytest.approx(np.mean(accuracy), rel=1e-12)
        assert line["accuracy_ci95"] == pytest.approx((high - low) / 2, rel=1e-9)
        assert line["dynamic_dnr_mean"] == pytest.approx(
            np.mean([r["dynamic_dnr"] for r in members])
        )
        assert line["n"] == 3


def test_the_saved_network_is_the_one_that_was_measured(study):
    folder, results = study
    saved = read_json(folder / "details.json")["saved"]
    data = load_images("digits", seed=int(saved["seed"]), limit=300)
    weights = str(folder / "model.safetensors")
    network = build("mlp", data, seed=9, norm=False, weights=weights)
    found = evaluate(
        network, classification_quality, plain_batches(data.test, data, device=torch.device("cpu"))
    )
    (row,) = of(results, seed=int(saved["seed"]), ap=saved["ap"], cycle=3)
    assert found["accuracy"] == pytest.approx(row["accuracy"])
    zeros = sum(int((p == 0).sum()) for n, p in network.named_parameters() if "weight" in n)
    assert 1 - zeros / 8832 == pytest.approx(row["density"])


def test_details_count_every_layer_and_activation(study):
    folder, _ = study
    layers = read_json(folder / "details.json")["layers"]
    kept = [row for row in layers if row["kind"] == "layer" and row["ap"] == "lite"]
    assert len(kept) == 3 * 3
    assert sum(row["weights"] for row in kept) == 3 * 8832
    sites = [row for row in layers if row["kind"] == "site" and row["ap"] == "lite"]
    assert len(sites) == 3 * 2
    assert {row["neurons"] for row in sites} == {64}


@quick
def test_undefined_intervals_are_null(tmp_path):
    results = prune(tmp_path / "run", "--seed 4 --cycles 1")
    assert {row["seed"] for row in results["rows"]} == {4}
    assert {line["accuracy_ci95"] for line in results["summary"]} == {None}


# ---- every score, arm and way of going back


@quick
@pytest.mark.parametrize("model", ["mlp", "cnn --batch-size 100"])
def test_every_score_runs_in_every_arm_to_the_same_density(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(scores.SynFlow, "rounds", 5)  # not 100
    names = ",".join(reversed(SCORES))  # those that remember something first
    flags = f"--model {model} --score {names} --ap off,lite,pro --cycles 1 --seed 0 --epochs 1"
    results = prune(tmp_path / "run", flags)
    final = of(results, cycle=1)
    assert len(final) == len(SCORES) * 3
    assert len({row["density"] for row in final}) == 1
    norm = "cnn" in model
    assert ("A norm stands between weight and ReLU" in capsys.readouterr().out) == norm
    assert bool(read_json(tmp_path / "run" / "details.json")["notes"]) == norm


class Largest(scores.Score):
    """A toy: the largest weights of every layer go first, in two rounds."""

    rounds = 2

    def __call__(self, snapshot, /):
        return {name: -snapshot.trained[name].abs() for name in snapshot.masks}


@quick
def test_a_row_in_the_table_is_all_that_the_command_line_needs_of_a_score(tmp_path, monkeypatch):
    monkeypatch.setitem(SCORES, "toy", lambda generator: Largest())
    results = prune(tmp_path / "run", "--score toy,magnitude --ap off --cycles 2 --seed 0")
    assert {row["score"] for row in results["rows"]} == {"toy", "magnitude"}
    toy, magnitude = (of(results, score=name, cycle=2)[0] for name in ("toy", "magnitude"))
    assert toy["density"] == magnitude["density"]
    assert toy["accuracy"] < magnitude["accuracy"]
    monkeypatch.undo()
    with pytest.raises(UserError, match="unknown score 'toy'; choose from magnitude, layer_"):
        resolve(PruneConfig(score=("toy",)))


@quick
def test_every_control_runs_at_the_same_density(tmp_path):
    results = prune(tmp_path / "run", f"--ap {','.join(ARMS)} --cycles 2 --seed 0")
    assert len({row["density"] for row in of(results, cycle=2)}) == 1
    assert [row["ap"] for row in of(results, cycle=2)] == list(ARMS)


@quick
@pytest.mark.parametrize(
    "how",
    [
        "mlp --optimizer adamw --learning-rate 0.003 --rewind epoch:1",
        "mlp --norm batch --score movement,magnitude",
        "cnn --norm none --rewind epoch:1",
    ],
)
def test_networks_trained_together_are_those_trained_alone(tmp_path, how):
    flags = f"--model {how} --cycles 1 --seeds 2"
    together = prune(tmp_path / "a", f"{flags} --together 8")
    alone = prune(tmp_path / "b", f"{flags} --together 1")
    for one, other in zip(together["rows"], alone["rows"], strict=True):
        assert one["density"] == other["density"]
        assert one["accuracy"] == pytest.approx(other["accuracy"], abs=0.012)
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02)


@quick
@pytest.mark.parametrize("rewind", ["init", "epoch:1", "lr", "finetune"])
def test_every_rewinding_keeps_pruned_weights_at_zero(tmp_path, rewind):
    results = prune(tmp_path / "run", f"--rewind {rewind} --ap lite --cycles 2 --seed 0")
    assert [row["density"] for row in results["rows"]][-1] == pytest.approx(0.64, abs=1e-4)


@quick
@pytest.mark.parametrize(
    ("schedule", "densities"),
    [
        ("geometric", [1, 0.5, 0.25]),
        ("cubic", [1, 0.25 + 0.75 / 8, 0.25]),
        ("one_shot", [1, 0.25, 0.25]),
    ],
)
def test_schedules_reach_the_target(tmp_path, schedule, densities):
    flags = f"--target 0.25 --schedule {schedule} --cycles 2 --seed 0 --epochs 1"
    results = prune(tmp_path / "run", flags)
    for ap in ("off", "lite"):
        found = [row["density"] for row in of(results, ap=ap)]
        assert found == pytest.approx(densities, abs=1e-3)


@quick
def test_two_of_four_neighbours_stay(tmp_path):
    from safetensors.torch import load_file

    prune(
        tmp_path / "run",
        "--scope 2:4 --target 0.5 --schedule one_shot --cycles 1 --seed 0 --ap off",
    )
    for name, weight in load_file(tmp_path / "run" / "model.safetensors").items():
        if name.endswith("weight"):
            assert ((weight.reshape(-1, 4) != 0).sum(1) == 2).all()


@quick
def test_the_reference_arithmetic_drops_a_little_more_than_exactly(tmp_path):
    results = prune(tmp_path / "run", "--fidelity reference --cycles 1 --seed 0")
    (off,), (lite,) = of(results, ap="off", cycle=1), of(results, ap="lite", cycle=1)
    exact = 8832 - round(0.2 * 8832)
    assert off["density"] * 8832 == pytest.approx(exact, abs=1)
    assert exact - 4 <= lite["density"] * 8832 < exact


@quick
def test_a_trained_network_can_be_pruned_and_fine_tuned(tmp_path):
    dense = prune(tmp_path / "dense", "--cycles 0 --ap off --seed 0 --epochs 6")
    weights = tmp_path / "dense" / "model.safetensors"
    flags = f"--weights {weights} --rewind finetune --epochs 1 --cycles 1 --seed 0"
    tuned = prune(tmp_path / "tuned", flags)
    assert of(tuned, cycle=0)[0]["accuracy"] == pytest.approx(
        dense["rows"][0]["accuracy"], abs=0.01
    )
    assert of(tuned, cycle=1)[0]["accuracy"] > 0.8


@quick
def test_a_transformer_has_dead_neurons_below_a_threshold(tmp_path):
    flags = "--model vit --ap-scope all --ap lite --dead-threshold 0.01 --dead-examples 100"
    flags += " --cycles 1 --epochs 1 --seed 0"
    results = prune(tmp_path / "run", flags)
    assert 0 < results["rows"][-1]["dynamic_dnr"] < 1


@quick
def test_networks_of_others_are_built_from_module_and_factory(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "from torch import nn\n"
        "def factory(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8),\n"
        "                         nn.ReLU(), nn.Linear(8, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    results = prune(tmp_path / "run", "--model theirs:factory --cycles 1 --seed 0 --epochs 1")
    assert len(results["rows"]) == 4


def test_a_shortfall_of_candidates_is_told_and_densities_stay_equal(tmp_path, capsys):
    results = prune(tmp_path / "run", "--ap-rate 0.5 --rate 0.6 --cycles 2 --seed 0")
    assert len({row["density"] for row in of(results, cycle=2)}) == 1
    details = read_json(tmp_path / "run" / "details.json")
    assert details["shortfalls"][0]["missing"] > 0
    for shown in (capsys.readouterr().out, (tmp_path / "run" / "report.html").read_text()):
        assert "Candidates ran out in cycle" in shown


@quick
def test_bf16_runs(tmp_path):
    flags = "--precision bf16 --model cnn --cycles 1 --seed 0 --epochs 1 --ap off"
    assert len(prune(tmp_path / "run", flags)["rows"]) == 2


@quick
def test_more_arms_change_no_other_arm(tmp_path, study):
    _, first = study
    one = prune(tmp_path / "run", "--ap lite --cycles 3 --seed 1 --together 1")
    for ours, theirs in zip(one["rows"], of(first, ap="lite", seed=1), strict=True):
        assert ours["density"] == theirs["density"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)


def test_data_are_opened_once_for_all_seeds(tmp_path, monkeypatch):
    opened, open_ = [], readers._open
    monkeypatch.setattr(readers, "_open", lambda *a: opened.append(a) or open_(*a))
    results = prune(tmp_path / "run", "--ap off --cycles 1 --seeds 2 --epochs 1 --together 1")
    assert {row["seed"] for row in results["rows"]} == {0, 1}
    assert len(opened) == 1


def test_a_summary_of_nothing_is_nothing():
    assert summarise([]) == []


def test_a_checkpoint_of_version_0_1_is_gone_on_from():
    rows = [{"seed": 0, "cycle": 0}]
    empty = {key: [] for key in ("layers", "shortfalls", "done", "finished")}
    saved = {**empty, "rows": rows, "notes": ["a norm"], "cycles": {}, "best": None}
    assert State.of(saved) == State(rows=rows)
