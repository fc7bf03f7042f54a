"""The study of flows: every word of its command, what it writes, and how it goes on."""

from __future__ import annotations

import json
import math
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy import stats

from rectified import flow
from rectified.cli import main
from rectified.errors import UserError
from rectified.jobs import flow as job
from rectified.jobs import flow_data, flow_settings, flow_study
from rectified.jobs.flow_data import load_transfer
from rectified.jobs.flow_settings import DEFAULT, FlowConfig, check, recipes, resolve
from rectified.runs import FileStore, Run, read_json, read_results
from tests.jobs.conftest import quick_studies

FAST = (
    "--updates 6 --reflow-updates 6 --pairs 40 --pair-steps 2 --samples 20 --batch-size 8 "
    "--limit 100 --seed 0 --device cpu --quiet --steps 1,2"
)
RESULTS = ["verb", "config", "environment", "rows", "summary"]
ROW = ["seed", "round", "recipe", "solver", "steps", "distance", "distance_name"]
ROW += ["straightness", "transport_cost"]
SUMMARY = ["recipe", "round", "steps", "distance_mean", "distance_ci95", "n"]


def run(folder, flags):
    assert main(["flow", "--out", str(folder), *FAST.split(), *flags.split()]) == 0
    return read_results(folder)


def refused(capsys, folder, flags):
    """What is said of a mistake: one line."""
    capsys.readouterr()
    assert main(["flow", "--out", str(folder), *FAST.split(), *flags.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rectified: ")
    assert said.count("\n") == 1
    return said


def of(results, **wanted):
    return [row for row in results["rows"] if wanted.items() <= row.items()]


quick = pytest.mark.usefixtures("no_figures", "untrained")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """8 Gaussians to moons, both recipes, three rounds, a distilled network, two seeds."""
    folder = tmp_path_factory.mktemp("study") / "run"
    flags = "--data moons --source gaussians8 --recipe 2rf,2rf++ --rounds 3 --distil"
    words = FAST.replace("--seed 0", "--seeds 2").split()
    assert main(["flow", "--out", str(folder), *words, *flags.split()]) == 0
    return folder, read_results(folder)


# ---- what is written


def test_results_have_the_public_fields_in_their_order(study):
    _, results = study
    assert list(results) == [*RESULTS, "notes", "warnings"]
    assert results["verb"] == "flow"
    assert all(list(row)[: len(ROW)] == ROW for row in results["rows"])
    assert {tuple(row)[len(ROW) :] for row in results["rows"]} == {
        ("first_order_gap", "evaluations")
    }
    assert all(list(row) == [*SUMMARY, "solver"] for row in results["summary"])
    assert {row["distance_name"] for row in results["rows"]} == {"w2"}


def test_every_recipe_and_round_is_measured_at_every_number_of_steps(study):
    _, results = study
    arms = {(row["recipe"], row["round"]) for row in results["rows"]}
    assert arms == {
        ("1rf", 1),
        *((recipe, number) for recipe in ("2rf", "2rf++") for number in (2, 3)),
        ("2rf+distil", 3),
        ("2rf+++distil", 3),
    }
    for recipe, number in arms:
        for seed in (0, 1):
            found = of(results, recipe=recipe, round=number, seed=seed, solver="euler")
            assert [row["steps"] for row in found] == [1, 2]
            assert [row["evaluations"] for row in found] == [1, 2]
            assert len({row["straightness"] for row in found}) == 1


def test_the_summary_is_what_scipy_makes_of_the_rows(study):
    _, results = study
    for line in results["summary"]:
        keys = ("recipe", "round", "steps", "solver")
        members = [row["distance"] for row in of(results, **{key: line[key] for key in keys})]
        assert line["distance_mean"] == pytest.approx(np.mean(members))
        assert line["n"] == len(members)
        if len(members) > 1:
            low, high = stats.ttest_1samp(members, 0.0).confidence_interval(0.95)
            assert line["distance_ci95"] == pytest.approx((high - low) / 2, rel=1e-6)
        else:
            assert line["distance_ci95"] is None


def test_notes_have_the_floor_the_protocol_and_what_pairs_looked_like(study):
    _, results = study
    notes = results["notes"].values()
    assert len(notes) == 2 * 7
    assert all(note["floor"] > 0 for note in notes)
    assert all("exact W2 of 20 samples" in note["protocol"] for note in notes)
    for note in notes:
        is_first = note["round"] == 1
        assert ("pairs" in note) != is_first
        assert ("optimal_cost" in note) == is_first
        if is_first:
            assert note["optimal_cost"] <= note["independent_cost"]
        else:
            assert note["pairs"] == 40
            assert math.isfinite(note["loss"])
            assert math.isfinite(note["held_out_loss"])
            assert note["one_step_only"] == note["recipe"].endswith("distil")


def test_measured_rows_are_logged_as_they_come(study):
    folder, results = study
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [event for event in events if event["event"] == "measured"]
    assert [event["distance"] for event in logged] == [row["distance"] for row in results["rows"]]


def test_the_page_needs_nothing_else_and_shows_paths_and_pairs(study):
    folder, _ = study
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    for words in ("Trajectories, first flow", "Trajectories, 2rf, round 2", "Distance against"):
        assert words in page
    for words in ("The pairs that reflow was trained on", "real against real", "Protocol"):
        assert words in page


def test_one_page_over_several_runs(study, tmp_path):
    folder, _ = study
    out = tmp_path / "page.html"
    assert main(["report", str(folder), "--out", str(out)]) == 0
    assert "Distance against steps" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["model", "first", "distilled"])
def test_networks_are_kept_with_what_is_needed_to_build_them(study, name):
    folder, _ = study
    field, about = job.load_field(folder / f"{name}.safetensors")
    assert about["model"] == "mlp"
    assert about["source"] == "gaussians8"
    assert field.path is flow.straight
    assert field(torch.zeros(3, 2), torch.tensor(0.5)).shape == (3, 2)


def test_the_kept_network_is_the_one_that_was_measured(study):
    folder, results = study
    field, _ = job.load_field(folder / "model.safetensors")
    transfer = load_transfer("moons", "gaussians8", seed=0, limit=100, image_size=None, many=20)
    x0 = transfer.draw(900_000_000, 20, held_out=True)
    samples, _ = flow.generate(field, x0, steps=2, step=flow.euler)
    (row,) = of(results, seed=0, recipe="2rf", round=3, solver="euler", steps=2)
    assert flow.wasserstein2(samples, transfer.reference[:20]) == pytest.approx(row["distance"])


def test_samples_are_a_picture(study):
    from PIL import Image

    assert Image.open(study[0] / "samples.png").size[0] > 100


def test_nothing_of_the_work_is_left(study):
    assert not (study[0] / "checkpoint").exists()


# ---- every word


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
    tables = (
        flow_settings.TIMES,
        flow_settings.LOSSES,
        flow_settings.SOLVERS,
        flow_settings.PATHS,
        flow.PREDICTIONS,
    )
    for used, table in zip(zip(*WORDS, strict=True), tables, strict=True):
        assert set(used) == set(table)


@quick
def test_a_row_in_the_table_is_all_that_the_job_needs_of_a_path(tmp_path, monkeypatch):
    monkeypatch.setitem(flow_settings.PATHS, "toy", flow.paths.VPLinear(0.1, 5.0))
    results = run(tmp_path / "run", "--path toy --predict v_prediction")
    assert results["config"]["path"] == "toy"
    assert len(results["rows"]) > 0
    monkeypatch.undo()
    with pytest.raises(UserError, match="unknown path 'toy'; choose from straight, vp_cosine"):
        check(FlowConfig(path="toy"))


def test_every_word_stands_in_the_help(capsys):
    assert main(["flow", "--help"]) == 0
    described = set(re.findall(r"[\w+]+", capsys.readouterr().out))
    named = [*flow_settings.TIMES, *flow_settings.LOSSES, *flow_settings.SOLVERS]
    named += [*flow_settings.PATHS, *flow.PREDICTIONS, *flow_settings.RECIPES]
    assert all(name in described for name in (*named, *flow_settings.COUPLINGS))
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
    monkeypatch.setattr(flow_study, "GEOMETRY", 3)  # networks of images are slow on many
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
    assert recipes(FlowConfig(recipe=("2rf++",))) == ("2rf", "2rf++")
    assert recipes(FlowConfig(recipe=("2rf", "2rf"))) == ("2rf",)
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


def test_open_settings_are_filled_from_the_data_and_none_is_lost():
    points = resolve(FlowConfig(seeds=7, updates=3), shape=(2,))
    assert (points.model, points.pairs, points.updates, points.seeds) == ("mlp", 50_000, 3, 7)
    assert resolve(points, shape=(2,)) == points
    assert resolve(FlowConfig(steps=(2, 1, 2)), shape=(2,)).steps == (2, 1)
    assert resolve(DEFAULT, shape=(1, 8, 8)).model == "resmlp"
    assert resolve(DEFAULT, shape=(3, 32, 32)).model == "unet"


# ---- training that is what it is said to be


@quick
def test_recipes_of_a_round_are_trained_on_the_same_pairs(study):
    _, results = study
    for seed in (0, 1):
        notes = [n for n in results["notes"].values() if n["seed"] == seed and n["round"] == 2]
        assert len({note["pairs_distance"] for note in notes}) == 1
    later = [n for n in results["notes"].values() if n["round"] == 3 and n["seed"] == 0]
    assert len({note["pairs_distance"] for note in later}) > 1  # each on its own recipe's


@quick
def test_seeds_do_not_depend_on_each_other(tmp_path, study):
    _, results = study
    flags = "--data moons --source gaussians8 --recipe 2rf --rounds 2 --seed 1"
    alone = run(tmp_path / "run", flags)
    for row in alone["rows"]:
        (same,) = of(results, **{k: row[k] for k in ("recipe", "round", "solver", "steps", "seed")})
        assert same == row


@quick
def test_more_training_brings_the_flow_nearer(tmp_path):
    flags = "--data gaussians8 --limit 2000 --samples 300 --rounds 1 --batch-size 128 --steps 20"
    near, far = (
        run(tmp_path / str(n), f"{flags} --updates {n} --learning-rate 0.003")["rows"][0][
            "distance"
        ]
        for n in (400, 1)
    )
    assert near < 0.7 * far


# ---- going on


STOPPED = "--data moons --recipe 2rf++ --distil"


@contextmanager
def in_small_parts():
    """Of three updates and ten pairs, so that there is much to stop between."""
    with quick_studies(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_study, "SHARD", 10)
        patch.setattr(flow_settings, "updates_an_epoch", lambda updates: min(updates, 3))
        yield


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    with in_small_parts():
        return run(tmp_path_factory.mktemp("whole") / "run", STOPPED)


@pytest.mark.parametrize(
    ("owner", "what", "stop"),
    [(FileStore, "save", 2), (FileStore, "save", 5), (flow.PairStore, "write", 3)],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_rows(
    tmp_path, monkeypatch, unstopped, owner, what, stop
):
    """Between parts of a training, between rounds, between shards of pairs."""
    plain, count = getattr(owner, what), 0

    def stops(self, *arguments):
        nonlocal count
        plain(self, *arguments)
        count += 1
        if count == stop:
            raise KeyboardInterrupt

    with in_small_parts():
        with monkeypatch.context() as patched:
            patched.setattr(owner, what, stops)
            words = [*FAST.split(), *STOPPED.split()]
            assert main(["flow", "--out", str(tmp_path / "cut"), *words]) == 130
        assert count == stop
        assert main(["flow", "--resume", str(tmp_path / "cut"), "--quiet"]) == 0
    resumed = read_results(tmp_path / "cut")
    for name in ("rows", "notes", "summary"):
        assert resumed[name] == unstopped[name]


@quick
def test_a_damaged_shard_is_named_and_the_run_goes_on_without_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flow_study, "SHARD", 10)
    train, calls = flow_study.fit, []

    def second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(flow_study, "fit", second)
        assert main(["flow", "--out", str(tmp_path / "run"), *FAST.split()]) == 130
    (shard,) = (tmp_path / "run" / "checkpoint").rglob("pairs-00002.safetensors")
    shard.write_bytes(b"damaged")
    capsys.readouterr()
    assert main(["flow", "--resume", str(tmp_path / "run"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert str(shard) in said
    assert "remove that file and run again" in said
    shard.unlink()
    assert main(["flow", "--resume", str(tmp_path / "run"), "--quiet"]) == 0


# ---- what a user is warned of


@quick
def test_noise_on_a_path_of_large_gain_is_warned_of(tmp_path, capsys):
    results = run(tmp_path / "a", "--predict noise --path vp_linear --rounds 1")
    assert "terminal gain 152: one step multiplies the error" in results["warnings"][0]
    assert f"mind: {results['warnings'][0]}" in capsys.readouterr().out
    results = run(tmp_path / "b", "--predict noise --rounds 1")
    assert "terminal gain infinite" in results["warnings"][0]
    assert run(tmp_path / "c", "--predict v_prediction --rounds 1")["warnings"] == []


@quick
def test_renoise_where_it_is_not_safe_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(flow_settings, "RENOISE_GAP", 0.0)
    results = run(tmp_path / "run", "--solver renoise --rounds 1 --steps 1,9")
    assert any("no consistent solver" in words for words in results["warnings"])
    assert any("worse with more than 8 steps" in words for words in results["warnings"])


@quick
def test_renoise_is_tried_only_where_it_is_safe(tmp_path, monkeypatch):
    steps = "--steps 1,2,8,9"
    monkeypatch.setattr(flow_settings, "RENOISE_GAP", math.inf)
    safe = run(tmp_path / "a", steps)
    assert {(r["round"], r["steps"]) for r in of(safe, solver="renoise")} == {(2, 2), (2, 8)}
    monkeypatch.setattr(flow_settings, "RENOISE_GAP", 0.0)
    assert of(run(tmp_path / "b", steps), solver="renoise") == []


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("data", ["moons"])
def test_a_flow_that_has_diverged_is_told_and_no_crash(tmp_path, capsys, data):
    """In its last update, after which there is no loss to see it by."""
    flags = f"--data {data} --learning-rate 1e38 --ema 0 --updates 1"
    results = run(tmp_path / "run", f"{flags} --rounds 1")
    assert any("has diverged: its samples grow without bound" in w for w in results["warnings"])
    assert all(row["straightness"] is None for row in results["rows"])
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert "has diverged" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "is not finite: what makes the pairs diverges" in refused(
        capsys, tmp_path / "two", f"{flags} --rounds 2"
    )


def test_a_training_that_diverges_is_one_line(tmp_path, capsys):
    said = refused(capsys, tmp_path / "run", "--learning-rate 1e38")
    assert "the loss is nan in epoch 1: lower learning_rate" in said


def test_pairs_that_look_exchanged_are_warned_of(tmp_path):
    study = flow_study.FlowStudy(DEFAULT, Run(tmp_path / "run"), False)
    notes = {"a": {"first_order_gap": 0.1, "oriented": False, "has_diverged": False}}
    assert job.warnings(study, [], notes) == [
        "The pairs of a look exchanged: x1 is nearer to noise than x0."
    ]


# ---- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "curved"}, "unknown path 'curved'; choose from straight"),
        ({"predict": "x0"}, "unknown prediction 'x0'; choose from velocity"),
        ({"couple": "emd"}, "unknown coupling 'emd'; choose from independent, ot, sinkhorn"),
        ({"times": "normal"}, "unknown time law 'normal'"),
        ({"reflow_times": "normal"}, "unknown time law 'normal'"),
        ({"loss": "l2"}, "unknown loss 'l2'"),
        ({"reflow_loss": "l2"}, "unknown loss 'l2'"),
        ({"solver": "rk5"}, "unknown solver 'rk5'; choose from auto, euler"),
        ({"recipe": ("3rf",)}, r"unknown recipe '3rf'; choose from 2rf, 2rf\+\+"),
        ({"recipe": ()}, "recipe and steps must name at least one each"),
        ({"steps": ()}, "recipe and steps must name at least one each"),
        ({"steps": (1, 0)}, "steps must be at least 1, got 0"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"pair_steps": 0}, "pair_steps must be at least 1"),
        ({"updates": 0}, "updates must be at least 1"),
        ({"reflow_updates": 0}, "reflow_updates must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"pairs": 9}, "pairs must be at least 10, got 9"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"limit": 1}, "limit must be at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
        ({"inverted": 1.0}, r"inverted must be in \[0, 1\), got 1.0"),
        ({"label_drop": 2.0}, r"label_drop must be in \[0, 1\], got 2.0"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"solver": "euler", "path": "edm"}, "curved path edm: write --solver natural_euler"),
        ({"guidance": math.nan}, "guidance must be a number, got nan"),
        ({"pair_guidance": math.inf}, "pair_guidance must be a number, got inf"),
        ({"guidance": 2.0}, "guidance needs a condition: add --conditional"),
        ({"pair_guidance": 2.0}, "guidance needs a condition"),
        ({"couple": "class_ot"}, "class_ot needs class labels: add --conditional"),
    ],
)
def test_impossible_settings_are_refused_before_anything_happens(changes, message):
    with pytest.raises(UserError, match=message):
        check(FlowConfig(**changes))


BAD = [
    ("--data nowhere.npy", "nowhere.npy is not a table of numbers"),
    ("--data nowhere", "nowhere"),
    ("--data {tmp}/nan.npy", "nan.npy: row 4 holds a NaN or infinity"),
    ("--data {tmp}/few.csv", "few.csv must hold at least 10 points, got 2"),
    ("--data {tmp}/none.csv", "none.csv must be a table with a row a point, got shape (0, 1)"),
    ("--data {tmp}/empty", "empty must hold parquet files, or a folder of images for each"),
    ("--data moons --source {tmp}/three.npy", "must have one dimension, got (3,)"),
    ("--data digits --source moons", "must have one dimension"),
    ("--data digits#11", "class '11' is not in digits; choose from 0, 1"),
    ("--data moons --steps 0", "steps must be at least 1, got 0"),
    ("--data moons --guidance 2", "guidance needs a condition"),
    ("--data moons --conditional", "points have no class labels: leave out --conditional"),
    ("--data digits --model mlp", "model mlp is for points"),
    ("--data moons --model unet", "model unet is for images"),
    ("--data moons --model dit", "model dit is for images"),
    ("--data moons --source rings --path edm", "transfer between two sets is learnt on the str"),
    ("--data digits#1 --source digits#2 --conditional", "a conditional flow starts from noise"),
    ("--data moons --source rings --inverted 0.1", "inverted pairs start from noise"),
    ("--data moons --steps two", "--steps"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[flags for flags, _ in BAD])
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, capsys, flags, message):
    points = np.random.default_rng(0).standard_normal((30, 3))
    np.save(tmp_path / "three.npy", points)
    points[3, 1] = np.nan
    np.save(tmp_path / "nan.npy", points)
    (tmp_path / "few.csv").write_text("1,2\n3,4\n")
    (tmp_path / "none.csv").write_text("x,y\n")
    (tmp_path / "empty").mkdir()
    words = flags.format(tmp=tmp_path).split()
    assert main(["flow", "--out", str(tmp_path / "run"), "--quiet", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("rectified: ")
    assert message in said
    assert not (tmp_path / "run").exists()


@quick
def test_a_store_of_another_model_is_refused(tmp_path, monkeypatch):
    config = FlowConfig(pairs=20, updates=1, samples=4, limit=50, seed=0, batch_size=4)
    study = flow_study.FlowStudy(config, Run(tmp_path / "run"), False)
    transfer = study.transfer(0)
    key = flow_study.Key(0, "2rf", 2)
    study.pairs(key, transfer, study.field(study.build(transfer, 0)))
    with pytest.raises(UserError, match=r"holds pairs of another model .* remove it"):
        study.pairs(key, transfer, study.field(study.build(transfer, 1)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no flow at"),
        (lambda path: path.write_bytes(b"damaged"), "is damaged or no flow of ours"),
        (
            lambda path: __import__("safetensors.torch").torch.save_file(
                {"a": torch.zeros(1)}, path
            ),
            "is damaged or no flow of ours",
        ),
    ],
)
def test_a_file_that_is_no_flow_is_refused(study, tmp_path, damage, message):
    copy = tmp_path / "model.safetensors"
    copy.write_bytes((study[0] / "model.safetensors").read_bytes())
    damage(copy)
    with pytest.raises(UserError, match=message):
        job.load_field(copy)


def test_standardised_points_come_back_in_their_own_unit():
    transfer = load_transfer("moons", "gaussian", seed=0, limit=500, image_size=None, many=50)
    torch.testing.assert_close(transfer.train.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(transfer.train.std(0), torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(transfer.unscaled(transfer.train), transfer.target.train)


def test_held_out_source_points_are_not_those_of_training(tmp_path):
    np.save(tmp_path / "from.npy", np.arange(40.0).reshape(20, 2))
    np.save(tmp_path / "to.npy", np.arange(40.0).reshape(20, 2))
    transfer = load_transfer(
        str(tmp_path / "to.npy"),
        str(tmp_path / "from.npy"),
        seed=0,
        limit=None,
        image_size=None,
        many=50,
    )
    held = {tuple(row) for row in transfer.draw(0, 50, held_out=True).tolist()}
    trained = {tuple(row) for row in transfer.draw(0, 500).tolist()}
    assert held
    assert trained
    assert not held & trained
    assert flow_data.is_points("x.npy")
