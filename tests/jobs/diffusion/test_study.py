"""`rectified diffusion` on networks of our own: arms, forms, warnings, and how it goes on."""

import math
import re
from dataclasses import asdict

import numpy as np
import pytest

from rectified import flow
from rectified.cli import main
from rectified.flow.losses import LOSSES
from rectified.flow.paths import PATHS
from rectified.jobs.diffusion import settings as diffusion
from rectified.jobs.diffusion.settings import (
    DEFAULT,
    DiffusionConfig,
    as_flow,
    resolve,
    straight,
)
from rectified.jobs.flow import trial
from rectified.jobs.flow.networks import load_field
from rectified.jobs.job import open_run
from rectified.jobs.values import from_settings
from rectified.runs import FileStore, read_config, read_json, read_results, write_config
from tests.jobs.conftest import quick_studies, untrained_classifier
from tests.torture import kill

FAST = (
    "--updates 6 --rectify-updates 6 --pairs 40 --pair-steps 2 --samples 20 --batch-size 8 "
    "--limit 100 --device cpu --quiet --steps 1,2"
)
RESULTS = ["verb", "config", "environment", "rows", "summary", "verdicts", "notes", "warnings"]
ROW = ["seed", "round", "recipe", "solver", "steps", "distance", "distance_name"]
ROW += ["straightness", "transport_cost", "first_order_gap", "evaluations"]
SUMMARY = ["recipe", "round", "steps", "distance_mean", "distance_ci95", "n", "solver"]

quick = pytest.mark.usefixtures("no_figures", "untrained")


def run(folder, flags):
    words = [*FAST.split(), "--out", str(folder), *flags.split()]
    assert main(["diffusion", *words]) == 0
    return read_results(folder)


def arms(results):
    return {(row["recipe"], row["round"]) for row in results["rows"]}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Digits with everything: a phased model, the controls, two seeds, and its page."""
    folder = tmp_path_factory.mktemp("study") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "train_classifier", untrained_classifier)
        return folder, run(folder, "--data digits --phases 2 --seeds 2")


# ---- what is written


def test_results_have_the_public_fields_in_their_order(study):
    _, results = study
    assert list(results) == RESULTS
    assert results["verb"] == "diffusion"
    assert all(list(row) == ROW for row in results["rows"])
    assert all(list(row) == SUMMARY for row in results["summary"])
    assert {row["distance_name"] for row in results["rows"]} == {"frechet"}


def test_the_straight_flow_and_its_reflow_are_the_controls(study):
    _, results = study
    assert arms(results) == {("diffusion", 1), ("rd", 2), ("phased", 2), ("1rf", 1), ("2rf", 2)}
    for row in results["rows"]:
        plain = {"1rf": "euler", "2rf": "euler"}.get(row["recipe"], "natural_euler")
        assert row["solver"] in (plain, "renoise")
    assert {row["n"] for row in results["summary"] if row["solver"] != "renoise"} == {2}


def test_a_rectification_and_its_control_have_the_same_budget():
    config = DiffusionConfig(updates=7, rectify_updates=5, pairs=90, pair_steps=3, ema=0.9)
    one, other = (plan.filled((1, 8, 8)) for plan in resolve(config).flows)
    assert one.budget == other.budget
    assert (one.budget.updates, one.budget.reflow_updates) == (7, 5)
    for name in ("pair_steps", "rounds", "steps"):
        assert getattr(one.config, name) == getattr(other.config, name)
    for ours, theirs in zip(one.stages, other.stages, strict=True):
        assert one.fitting(ours, 0) == other.fitting(theirs, 0)
    control = straight(config)
    assert (control.path, control.predict, control.reflow_loss) == ("straight", "velocity", None)
    assert one.data is other.data  # which are read once


def test_the_settings_that_were_open_are_written_as_they_were_filled(study):
    folder, results = study
    assert results["config"]["model"] == "resmlp"
    assert results["config"]["rectify_updates"] == 6
    assert results["config"]["learning_rate"] == 2e-3
    verb, settings = read_config(folder / "config.yaml")
    assert verb == "diffusion"
    assert {**settings, "steps": [*settings["steps"]]} == results["config"]


def test_notes_say_what_an_error_is_multiplied_by(study):
    _, results = study
    gains = {note["recipe"]: note["terminal_gain"] for note in results["notes"].values()}
    assert gains["diffusion"] == gains["rd"] == gains["phased"] == pytest.approx(1, abs=1e-4)
    assert gains["1rf"] == 1
    assert {n["phases"] for n in results["notes"].values() if n["recipe"] == "phased"} == {2}


def test_the_page_shows_first_order_beside_straightness(study):
    folder, _ = study
    page = (folder / "report.html").read_text(encoding="utf-8")
    for words in ("Straight, or first-order", "terminal gain", "Samples, phased, round 2"):
        assert words in page


def test_the_kept_network_is_the_rectified_one(study):
    folder, _ = study
    field, about = load_field(folder / "model.safetensors")
    assert (about["recipe"], about["path"], about["predict"]) == ("rd", "vp_linear", "v_prediction")
    assert field.path is flow.paths.vp_linear
    assert load_field(folder / "first.safetensors")[1]["recipe"] == "diffusion"
    assert (folder / "samples.png").stat().st_size > 100
    assert not (folder / "checkpoint").exists()
    shown = read_json(folder / "details.json")["shown"]
    assert set(shown) == {"diffusion model", "rd, round 2", "phased, round 2", "first flow",
                          "2rf, round 2"}  # fmt: skip
    assert np.asarray(shown["rd, round 2"]).shape == (3, 10, 1, 8, 8)


def test_a_figure_of_the_terminal_is_that_of_the_page(study):
    folder, _ = study
    results = open_run(folder)
    (line,) = (one for one in results.summary if (one["recipe"], one["steps"]) == ("1rf", 2))
    shown = f"{line['distance_mean']:.3g} ± {line['distance_ci95']:.3g}"
    for words in (shown, "rd, round 2, 1 step against 2rf", "phased, round 2, 2 steps against rd"):
        assert words in results.text
        assert words in (folder / "report.html").read_text(encoding="utf-8")
    assert results.network().state_dict().keys()


# ---- settings


def test_settings_come_back_from_a_file(tmp_path):
    config = DiffusionConfig(steps=(4, 1), learning_rate=1.0, seed=3, phases=2)
    write_config(tmp_path / "config.yaml", "diffusion", asdict(config))
    _, settings = read_config(tmp_path / "config.yaml")
    assert from_settings(DiffusionConfig, settings, source="config.yaml") == config


def test_resolving_changes_no_setting_and_reads_nothing():
    """A sweep knows its runs by their resolved settings."""
    for config in (DEFAULT, DiffusionConfig(data="nowhere", steps=(2, 1, 2), control=False)):
        assert resolve(config).config == config


# ---- forms


FORMS = [  # path, prediction, loss
    ("vp_linear", "v_prediction", "auto"),
    ("vp_cosine", "target", "squared"),
    ("sub_vp", "noise", "target_squared"),
    ("edm", "edm", "huber"),
    ("ddpm", "v_prediction", "norm"),
    ("scaled_linear", "noise", "target_huber"),
]


@quick
@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_every_form_runs(tmp_path, form):
    path, predict, loss = form
    flags = f"--data moons --no-control --seed 1 --path {path} --predict {predict} --loss {loss}"
    results = run(tmp_path / "run", flags)
    assert arms(results) == {("diffusion", 1), ("rd", 2)}
    assert all(math.isfinite(row["distance"]) for row in results["rows"])
    assert {row["seed"] for row in results["rows"]} == {1}
    assert {row["distance_name"] for row in results["rows"]} == {"w2"}


def test_every_form_is_among_those_that_run(capsys):
    paths, predictions, losses = (set(words) for words in zip(*FORMS, strict=True))
    assert paths == set(PATHS) - {"straight"}
    assert predictions == set(diffusion.FORMS)
    assert losses == {"auto", *LOSSES}
    assert main(["diffusion", "--help"]) == 0
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert all(name in words for name in (*paths, *predictions, *(losses - {"norm"})))


def test_noise_is_compared_as_the_target_that_it_implies():
    assert as_flow(DEFAULT).reflow_loss == "squared"
    assert as_flow(DiffusionConfig(predict="noise")).reflow_loss == "target_huber"
    assert as_flow(DiffusionConfig(predict="noise", loss="squared")).reflow_loss == "squared"
    assert as_flow(DEFAULT).loss == "squared"  # the first model's own
    (term,) = LOSSES["target_huber"]()
    assert (term.loss, term.space) == (flow.losses.element_huber, "target")


@quick
def test_classes_guidance_and_more_rounds(tmp_path):
    flags = "--data digits --conditional --guidance 2 --pair-guidance 1.5 --rounds 3 --seed 0"
    results = run(tmp_path / "run", f"{flags} --no-control --phases 2")
    assert arms(results) == {("diffusion", 1), ("rd", 2), ("rd", 3), ("phased", 2)}
    assert {row["evaluations"] for row in results["rows"] if row["steps"] == 1} == {1}
    assert load_field(tmp_path / "run" / "model.safetensors")[1]["classes"] == "10"


@quick
def test_one_round_is_the_diffusion_model_alone(tmp_path):
    results = run(tmp_path / "run", "--data moons --rounds 1 --no-control --seed 0")
    assert arms(results) == {("diffusion", 1)}


# ---- what it is for


@quick
def test_rectification_makes_a_curved_flow_first_order_and_not_straight(tmp_path):
    flags = "--data moons --no-control --seed 0 --steps 1,30 --pair-steps 30 --pairs 6000"
    budget = "--updates 1200 --rectify-updates 1200 --batch-size 256 --limit 5000 --samples 500"
    results = run(tmp_path / "run", f"{flags} {budget}")
    before, after = results["notes"].values()
    assert after["first_order_gap"] < 0.2 * before["first_order_gap"]
    assert after["straightness_relative"] > 0.3 * before["straightness_relative"]
    one, many = (
        next(r["distance"] for r in results["rows"] if (r["recipe"], r["steps"]) == ("rd", steps))
        for steps in (1, 30)
    )
    teacher = results["rows"][0]["distance"]
    assert one < 1.5 * many
    assert one < 0.5 * teacher


# ---- warnings


@quick
@pytest.mark.parametrize(
    ("form", "gain"),
    [
        ("--path vp_linear --predict noise", "152"),
        ("--path scaled_linear --predict noise", "14.6"),
        ("--path ddpm --predict noise", "157"),
        ("--path vp_linear --predict v_prediction", None),
        ("--path vp_linear --predict target", None),
        ("--path edm --predict edm", None),
    ],
)
def test_a_form_whose_first_step_is_ill_conditioned_is_warned_of(tmp_path, form, gain):
    flags = f"--data moons --rounds 1 --no-control --seed 0 {form}"
    warnings = run(tmp_path / "run", flags)["warnings"]
    if gain is None:
        assert warnings == []
        return
    (warning,) = warnings
    assert f"terminal gain {gain}: one step multiplies the error of a noise" in warning
    for remedy in (
        "v_prediction or target",
        "loss in the target space",
        "schedule of smaller gain",
    ):
        assert remedy in warning


@quick
def test_noise_on_a_path_without_any_signal_at_its_start_is_told_and_no_crash(tmp_path):
    flags = "--data moons --path vp_cosine --predict noise --no-control --seed 0"
    words = [*FAST.split(), "--out", str(tmp_path / "run"), *flags.split()]
    assert main(["diffusion", *words]) in (0, 2)


# ---- going on


@quick
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_that_was_stopped_goes_on_to_the_same_results(tmp_path, monkeypatch, stop):
    """After a part of a training, a round of the model, a round of the control."""
    flags = "--data moons --phases 2 --seed 0"
    whole = run(tmp_path / "whole", flags)
    plain, count = FileStore.save, 0

    def stops(self, *arguments):
        nonlocal count
        plain(self, *arguments)
        count += 1
        if count == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FileStore, "save", stops)
        words = [*FAST.split(), *flags.split(), "--out", str(tmp_path / "cut")]
        assert main(["diffusion", *words]) == 130
    assert count == stop
    assert main(["diffusion", "--resume", str(tmp_path / "cut"), "--quiet"]) == 0
    resumed = read_results(tmp_path / "cut")
    for name in ("rows", "notes", "summary", "warnings"):
        assert resumed[name] == whole[name]


def test_kills_at_random_moments_change_no_number(monkeypatch):
    """Real kills (SIGKILL) of real processes."""
    small = f"diffusion --data moons --no-control --seed 0 {FAST}"
    monkeypatch.setattr(kill, "ROWS", {"diffusion": kill.Row(small)})
    with quick_studies():
        found = kill.killed("diffusion", 2, seed=0)
    assert found["kills"] == 2
    assert not found["differences"], found["places"]


# ---- mistakes


BAD = [
    ("--path straight", "unknown path 'straight'; choose from vp_cosine, vp_linear"),
    ("--path curved", "unknown path 'curved'"),
    ("--predict velocity", "unknown prediction 'velocity'; choose from v_prediction, noise"),
    ("--predict score", "unknown prediction 'score'"),
    ("--loss l2", "unknown loss 'l2'; choose from auto, squared"),
    ("--phases 0", "phases must be at least 1, got 0"),
    ("--rectify-updates 0", "rectify_updates must be at least 1, got 0"),
    ("--updates 0", "updates must be at least 1, got 0"),
    ("--rounds 0", "rounds must be at least 1, got 0"),
    ("--steps 0", "steps must be at least 1, got 0"),
    ("--steps one", "--steps"),
    ("--pairs 9", "pairs must be at least 10, got 9"),
    ("--ema 1", "ema must be in [0, 1), got 1.0"),
    ("--learning-rate 0", "learning_rate must be positive, got 0"),
    ("--guidance 2", "guidance needs a condition: add --conditional"),
    ("--data moons --conditional", "points have no class labels: leave out --conditional"),
    ("--data nowhere", "nowhere"),
    ("--data digits --model mlp", "model mlp is for points"),
    ("--data moons --model unet", "model unet is for images"),
    ("--seeds 0", "seeds must be at least 1, got 0"),
    ("--source moons", "--source"),  # of rectified flow
    ("--pipeline nowhere/at_all --data digits", "--data"),
    ("--pipeline {tmp}", "has no model_index.json: it is not the folder of a pipeline"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[flags for flags, _ in BAD])
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, capsys, flags, message):
    out = tmp_path / "run"
    words = flags.format(tmp=tmp_path).split()
    assert main(["diffusion", "--out", str(out), "--quiet", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rectified: ")
    assert said.count("\n") == 1
    assert message in said
    assert not out.exists()
