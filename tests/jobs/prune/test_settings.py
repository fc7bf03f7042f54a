"""What may be said to `rectified prune`, and what it means."""

import re
from dataclasses import asdict

import pytest

from rectified.cli import main
from rectified.data import readers
from rectified.errors import UserError
from rectified.jobs.prune import DEMO, JOB
from rectified.jobs.prune.settings import PruneConfig, resolve
from rectified.jobs.values import from_settings
from rectified.pruning import activate
from rectified.pruning.scores import SCORES
from rectified.runs import read_config, write_config


def test_open_settings_are_filled_from_the_recipe_and_none_is_lost():
    plan = resolve(PruneConfig(model="resnet20", target=0.1, seeds=9))
    config = plan.config
    assert (config.epochs, config.batch_size, config.together) == (50, 128, 1)
    assert (config.schedule, config.norm, config.seeds) == ("geometric", "batch", 9)
    assert resolve(config).config == config
    assert (plan.fit.epochs, plan.batch_size, plan.together) == (50, 128, 1)
    assert (plan.norm, plan.seeds, plan.fit.channels_last) == (True, tuple(range(9)), True)


def test_the_demo_shows_all_arms_over_at_least_three_seeds():
    config = DEMO.resolve(DEMO.default).config
    assert set(config.ap) >= {"off", "lite", "pro"}
    assert config.seeds >= 3
    assert config.data == "digits"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": ()}, "score must name at least one; choose from magnitude"),
        ({"score": ("magnitud",)}, "unknown score 'magnitud'; choose from magnitude"),
        ({"ap": ("light",)}, "unknown ap 'light'; choose from off, lite"),
        ({"ap": ()}, "ap must name at least one"),
        ({"model": "resnet18"}, "unknown model 'resnet18'; choose from mlp"),
        ({"rate": 0.02}, r"ap_rate must be in \(0, rate\), rate being 0.02; got 0.02"),
        ({"rate": 0.01}, r"ap_rate must be in \(0, rate\)"),
        ({"ap_rate": 0.0}, r"ap_rate must be in \(0, rate\)"),
        ({"rate": 1.0}, r"rate must be in \(0, 1\), got 1.0"),
        ({"rate": 0.0, "ap": ("off",)}, r"rate must be in \(0, 1\)"),
        ({"target": 1.0}, r"target must be in \(0, 1\), the present density, got 1"),
        ({"target": 1.5}, r"target must be in \(0, 1\)"),
        ({"target": 0.1, "schedule": "constant"}, "schedule constant goes by rate"),
        ({"schedule": "cubic"}, "schedule cubic needs a target"),
        ({"target": 0.5, "cycles": 0}, "cycles must be at least 1, got 0"),
        ({"cycles": -1}, "cycles must be at least 0, got -1"),
        ({"floor": -1}, "floor must be at least 0"),
        ({"limit": 1}, "limit must be at least 2, got 1"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"together": 0}, "together must be at least 1, got 0"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"dead_examples": 0}, "dead_examples must be at least 1"),
        ({"dead_threshold": -0.1}, "dead_threshold must be at least 0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"scope": "rows"}, "unknown scope 'rows'; choose from global, layer"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"seed": 2**40}, "seed must be at most"),
        ({"model": "nowhere:net"}, "model 'nowhere:net' cannot be imported"),
        ({"rewind": "start"}, "unknown rewind 'start'; choose from init, epoch:K"),
        ({"rewind": "epoch:8"}, r"rewind epoch must be below epochs \(8\), got 8"),
        ({"fidelity": "reference", "ap": ("pro",)}, "fidelity 'reference' goes with"),
        ({"fidelity": "reference", "target": 0.1}, "fidelity 'reference' goes with"),
    ],
)
def test_impossible_settings_are_refused_before_anything_happens(changes, message):
    with pytest.raises(UserError, match=message) as refused:
        resolve(PruneConfig(**changes))
    assert "\n" not in str(refused.value)


def test_every_score_and_arm_stands_in_the_help(capsys):
    assert main(["prune", "--help"]) == 0
    described = set(re.findall(r"\w+", capsys.readouterr().out))
    assert described >= {*SCORES, *activate.ARMS}
    assert PruneConfig() == JOB.default


@pytest.mark.parametrize(
    "config",
    [
        PruneConfig(),
        DEMO.default,
        PruneConfig(score=("lamp", "movement"), target=0.1, limit=300, augment=False, seed=3),
    ],
)
def test_settings_come_back_from_a_file_as_they_were(tmp_path, config):
    for number, whole in enumerate((config, resolve(config).config)):
        path = tmp_path / f"{number}.yaml"
        write_config(path, "prune", asdict(whole))
        verb, settings = read_config(path)
        assert (verb, from_settings(PruneConfig, settings, source=str(path))) == ("prune", whole)


def test_resolving_reads_no_data(monkeypatch):
    monkeypatch.setattr(readers, "_open", lambda *_: pytest.fail("data were opened"))
    resolve(PruneConfig(data="nowhere/at-all"))
