"""A tracker hears what a run logs, and the run does not notice."""

import json
import sys
import types
from pathlib import Path

import pytest

from rectified.cli import main
from rectified.errors import UserError
from rectified.runs import read_results
from rectified.runs.tracker import Tracker, scalars
from tests.drawings import undrawn

RUN = ["prune", "--limit", "200", "--epochs", "1", "--cycles", "1", "--seed", "0", "--quiet"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    undrawn(monkeypatch)


def test_tensorboard_has_the_numbers_of_metrics_jsonl():
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main([*RUN, "--tracker", "tensorboard", "--out", "run"]) == 0
    assert main([*RUN, "--out", "plain"]) == 0
    found = EventAccumulator("run/tensorboard")
    found.Reload()
    events = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    cycles = [event for event in events if event["event"] == "cycle"]
    assert len(cycles) == 4
    for event in cycles:
        tag = f"cycle/0/magnitude/{event['ap']}/accuracy"
        values = {one.step: one.value for one in found.Scalars(tag)}
        assert values[event["cycle"]] == pytest.approx(event["accuracy"])
    rows = [read_results(Path(name))["rows"] for name in ("run", "plain")]
    for row in (*rows[0], *rows[1]):
        row.pop("seconds")
    assert rows[0] == rows[1]
    assert not Path("plain/tensorboard").exists()


def test_a_tracker_writes_nothing_before_the_run_does(capsys):
    pytest.importorskip("tensorboard")
    assert main([*RUN, "--data", "nowhere", "--tracker", "tensorboard", "--out", "run"]) == 2
    assert list(Path().iterdir()) == []


def test_a_tracker_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    assert main([*RUN, "--tracker", "tensorboard", "--out", "run"]) == 2
    assert 'pip install "rectified[tensorboard]"' in capsys.readouterr().err
    with pytest.raises(UserError, match="tracker wandb is not installed: pip install wandb"):
        Tracker("wandb", Path("run"), {})
    with pytest.raises(UserError, match="unknown tracker 'aim'"):
        Tracker("aim", Path("run"), {})


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_the_others_are_given_the_same(name, monkeypatch):
    told = []

    class Fake(types.SimpleNamespace):
        def start(self):
            told.append("start")

        def store_init_configuration(self, settings):
            told.append(settings)

        def log(self, values, step):
            told.append((values, step))

        def finish(self):
            told.append("finish")

    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [name])
    monkeypatch.setitem(sys.modules["accelerate.tracking"].LOGGER_TYPE_TO_CLASS, name, Fake)
    tracker = Tracker(name, Path("runs/x"), {"score": ("a", "b"), "rate": 0.5})
    tracker.close()
    tracker({"event": "start", "verb": "prune"})
    for loss in (2.0, 1.0):
        tracker({"event": "loss", "loss": loss})
    tracker.close()
    assert tracker.tracker.run_name in ("x", "rectified")
    settings = {"score": "('a', 'b')", "rate": 0.5}
    logged = [({"loss/loss": 2.0}, 1), ({"loss/loss": 1.0}, 2)]
    assert told == ["start", settings, *logged, "finish"]


def test_an_event_becomes_scalars():
    event = {"event": "cycle", "time": 1.0, "seed": 3, "ap": "off", "cycle": 2, "n": 4, "ok": True}
    assert scalars(event) == ("cycle/3/off", 2, {"n": 4.0, "ok": 1.0})
