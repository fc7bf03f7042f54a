"""The settings of flows: what they mean, and what is refused in one line."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from rectified.cli import main
from rectified.errors import UserError
from rectified.flow import Discrete
from rectified.flow.losses import LOSSES
from rectified.flow.times import exponential, u_shaped, uniform
from rectified.jobs.flow.plan import usual_budget
from rectified.jobs.flow.recipes import RECIPES, Recipe
from rectified.jobs.flow.settings import DEFAULT, FlowConfig, resolve
from rectified.jobs.values import from_settings
from rectified.runs import read_config, write_config


def names(config):
    return [stage.name for stage in resolve(config).stages]


# ---- what they mean


def test_settings_come_back_from_a_file(tmp_path):
    config = FlowConfig(recipe=("2rf++", "2rf"), steps=(4, 1), learning_rate=1.0, seed=3, limit=9)
    write_config(tmp_path / "config.yaml", "flow", asdict(config))
    verb, settings = read_config(tmp_path / "config.yaml")
    assert verb == "flow"
    assert from_settings(FlowConfig, settings, source="config.yaml") == config


@pytest.mark.parametrize("config", [DEFAULT, FlowConfig(steps=(2, 1, 2), seed=4, data="nowhere")])
def test_resolving_changes_no_setting_and_reads_nothing(config):
    """A sweep knows its runs by their resolved settings."""
    assert resolve(config).config == config


def test_open_settings_are_filled_from_the_data_and_none_is_lost():
    points = resolve(FlowConfig(seeds=7, updates=3)).filled((2,)).config
    assert (points.model, points.pairs, points.updates, points.seeds) == ("mlp", 50_000, 3, 7)
    assert resolve(points).filled((2,)).config == points
    assert resolve(FlowConfig(steps=(2, 1, 2))).filled((2,)).config.steps == (2, 1)
    assert usual_budget((1, 8, 8)).model == "resmlp"
    assert usual_budget((3, 32, 32)).model == "unet"
    assert resolve(FlowConfig(data="digits", model="dit")).filled((1, 8, 8)).budget.model == "dit"


def test_plain_reflow_is_the_control_of_rfpp_unless_it_is_not_wanted():
    assert names(FlowConfig(recipe=("2rf++",))) == ["1rf-1", "2rf-2", "2rfpp-2"]
    assert names(FlowConfig(recipe=("2rf++", "2rf"))) == ["1rf-1", "2rfpp-2", "2rf-2"]
    assert names(FlowConfig(recipe=("2rf", "2rf"))) == ["1rf-1", "2rf-2"]
    assert names(FlowConfig(recipe=("2rf++",), control=False)) == ["1rf-1", "2rfpp-2"]


def test_every_network_starts_at_one_that_was_trained_before():
    plan = resolve(FlowConfig(recipe=("2rf", "2rf++"), rounds=3, distil=True), phases=2)
    done = set()
    for stage in plan.stages:
        assert (stage.start is None) == (stage.round == 1)
        assert stage.start is None or stage.start in done
        done.add(stage)
    starts = {stage.name: stage.start.name for stage in plan.stages if stage.start}
    assert starts == {
        "2rf-2": "1rf-1",
        "2rfpp-2": "1rf-1",
        "phased-2": "1rf-1",
        "2rf-3": "2rf-2",
        "2rfpp-3": "2rfpp-2",
        "2rfpdistil-3": "2rf-3",
        "2rfpppdistil-3": "2rfpp-3",
    }
    assert plan.last.name == "2rf-3"
    assert resolve(FlowConfig(rounds=1, distil=True)).last.name == "1rf-1"


def test_recipes_differ_in_times_and_loss():
    given = FlowConfig(recipe=("2rf", "2rf++"), loss="huber", rounds=2, distil=True)
    first, plain, better, *one_step = (stage.recipe for stage in resolve(given).stages)
    assert (first.times, first.terms) == (uniform, LOSSES["huber"]())
    assert (plain.times, plain.terms) == (uniform, LOSSES["huber"]())
    assert (better.times, better.is_perceptual) == (u_shaped, True)
    assert [recipe.times for recipe in one_step] == [Discrete(1), Discrete(1)]
    assert [recipe.is_distilled for recipe in one_step] == [True, True]
    own = replace(given, reflow_times="exponential", reflow_loss="norm")
    first, plain, better, *_ = (stage.recipe for stage in resolve(own).stages)
    assert (first.terms, plain.terms) == (LOSSES["huber"](), LOSSES["norm"]())
    assert (plain.times, better.times) == (exponential, exponential)
    assert better.terms == RECIPES["2rf++"].terms
    assert Recipe("2rf") == RECIPES["2rf"]


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
        resolve(FlowConfig(**changes))


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
