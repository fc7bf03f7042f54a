"""Every word and choice of `rectified flow`, on points and on images."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rectified import flow
from rectified.cli import main
from rectified.errors import UserError
from rectified.flow.losses import LOSSES
from rectified.flow.paths import PATHS, VPLinear
from rectified.flow.solvers import SOLVERS
from rectified.flow.times import TIMES
from rectified.jobs.flow import measuring
from rectified.jobs.flow.recipes import RECIPES
from rectified.jobs.flow.settings import COUPLINGS, DEFAULT, FlowConfig, resolve
from rectified.runs import read_json
from tests.jobs.flow.running import of, run

quick = pytest.mark.usefixtures("no_figures", "untrained")

WORDS = [  # times, loss, solver, path, prediction
    ("uniform", "squared", "euler", "straight", "velocity"),
    ("u_shaped", "norm", "midpoint", "vp_cosine", "v_prediction"),
    ("logit_normal", "huber", "heun", "vp_linear", "target"),
    ("exponential", "target_huber", "rk4", "sub_vp", "v_prediction"),
    ("edm_lognormal", "target_squared", "natural_euler", "edm", "edm"),
    ("source_mass", "squared", "exponential2", "ddpm", "score"),
    ("uniform", "huber", "renoise", "scaled_linear", "noise"),
]


@quick
@pytest.mark.parametrize("words", WORDS, ids="-".join)
def test_every_word_runs(tmp_path, words):
    times, loss, solver, path, predict = words
    flags = f"--times {times} --reflow-times {times} --loss {loss} --solver {solver}"
    results = run(tmp_path / "run", f"{flags} --path {path} --predict {predict}")
    assert {row["solver"] for row in results["rows"]} == {solver}
    assert len(results["rows"]) == 4
    assert all(row["distance"] > 0 for row in results["rows"])


def test_every_word_is_among_those_that_run():
    known = (
        TIMES,
        LOSSES,
        SOLVERS,
        PATHS,
        flow.PREDICTIONS,
    )
    for used, table in zip(zip(*WORDS, strict=True), known, strict=True):
        assert set(used) == set(table)


@quick
def test_a_row_in_the_table_is_all_that_the_job_needs_of_a_path(tmp_path, monkeypatch):
    monkeypatch.setitem(PATHS, "toy", VPLinear(0.1, 5.0))
    results = run(tmp_path / "run", "--path toy --predict v_prediction")
    assert results["config"]["path"] == "toy"
    assert len(results["rows"]) > 0
    monkeypatch.undo()
    with pytest.raises(UserError, match="unknown path 'toy'; choose from straight, vp_cosine"):
        resolve(FlowConfig(path="toy"))


def test_every_word_stands_in_the_help(capsys):
    assert main(["flow", "--help"]) == 0
    described = set(re.findall(r"[\w+]+", capsys.readouterr().out))
    named = [*TIMES, *LOSSES, *SOLVERS]
    named += [*PATHS, *flow.PREDICTIONS, *RECIPES]
    assert all(name in described for name in (*named, *COUPLINGS))
    assert FlowConfig() == DEFAULT


@quick
@pytest.mark.parametrize(
    "flags", ["--couple ot", "--couple sinkhorn", "--inverted 0.3", "--precision bf16", "--ema 0"]
)
def test_every_other_choice_runs_on_points(tmp_path, flags):
    assert len(run(tmp_path / "run", f"--data rings {flags}")["rows"]) >= 4


@quick
@pytest.mark.parametrize(
    "flags",
    [
        "--recipe 2rf++ --distil",
        "--conditional --guidance 2 --pair-guidance 1.5 --inverted 0.2 --couple class_ot",
        "--model unet --path vp_cosine --predict v_prediction --updates 1 --rounds 1",
        "--model dit --conditional --label-drop 0.5 --updates 1 --rounds 1",
        "--source digits#5 --image-size 8",
    ],
)
def test_every_choice_runs_on_images(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(measuring, "GEOMETRY", 3)  # networks of images are slow on many
    data = "digits#3" if "--source" in flags else "digits"
    results = run(tmp_path / "run", f"--data {data} {flags}")
    assert {row["distance_name"] for row in results["rows"]} == {"frechet"}
    expected = {"1rf"} if "--rounds 1" in flags else {"1rf", "2rf"}
    expected |= {"2rf++", "2rf+distil", "2rf+++distil"} if "++" in flags else set()
    assert {row["recipe"] for row in results["rows"]} == expected
    assert (tmp_path / "run" / "samples.png").stat().st_size > 100
    shape = np.asarray(read_json(tmp_path / "run" / "details.json")["shown"]["first flow"]).shape
    assert shape == (3, 10, 1, 8, 8)  # the source and two numbers of steps


@pytest.mark.usefixtures("no_figures")
def test_image_features_are_of_a_classifier_that_has_learnt(tmp_path):
    results = run(tmp_path / "run", "--data digits --limit 400 --rounds 1")
    (note,) = results["notes"].values()
    accuracy = float(re.search(r"with ([\d.]+)% test accuracy", note["protocol"])[1])
    assert accuracy > 80
    assert note["floor"] < of(results, steps=2)[0]["distance"]


def test_a_page_of_images_shows_them_in_every_number_of_steps(tmp_path, monkeypatch, untrained):
    run(tmp_path / "run", "--data digits --rounds 1")
    assert "Samples, first flow" in (tmp_path / "run" / "report.html").read_text()


@quick
def test_one_round_is_the_first_flow_alone(tmp_path):
    results = run(tmp_path / "run", "--rounds 1 --distil")
    assert {(row["recipe"], row["round"]) for row in results["rows"]} == {("1rf", 1)}
    assert not (tmp_path / "run" / "distilled.safetensors").exists()


@quick
def test_plain_reflow_is_the_control_of_rfpp_unless_it_is_not_wanted(tmp_path):
    results = run(tmp_path / "run", "--recipe 2rf++ --no-control")
    assert {row["recipe"] for row in results["rows"]} == {"1rf", "2rf++"}


@quick
@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_files_of_points_are_source_and_target(tmp_path, suffix):
    generator = np.random.default_rng(0)
    for name in ("from", "to"):
        points = generator.standard_normal((60, 3))
        if suffix == "npy":
            np.save(tmp_path / f"{name}.npy", points)
        else:
            np.savetxt(tmp_path / f"{name}.csv", points, delimiter=",", header="x,y,z", comments="")
    flags = f"--data {tmp_path}/to.{suffix} --source {tmp_path}/from.{suffix}"
    results = run(tmp_path / "run", flags)
    assert len(of(results, solver="euler")) == 4
    assert read_json(tmp_path / "run" / "details.json")["shown"] == {}  # no plane to draw in
