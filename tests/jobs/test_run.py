"""`rectified.run` and `rectified.open_run`: a verb from Python, as the command line does it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rectified
from rectified.cli import main
from rectified.errors import UserError
from rectified.jobs import JOBS
from tests.jobs.toy import ENTRY
from tests.jobs.toy.study import CHECKED, TROUBLE


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    monkeypatch.setitem(JOBS, "toy", ENTRY)
    monkeypatch.chdir(tmp_path)
    TROUBLE.clear()
    CHECKED.clear()


def plain(results):
    """What a run found, but for what is of its process."""
    return {key: value for key, value in results.contents.items() if key != "environment"}


def test_a_run_finds_what_the_command_finds(capsys):
    results = rectified.run("toy", out="a", rate=1, seeds=2, steps=(1, 4), names="x,y")
    assert capsys.readouterr().out == ""
    words = "toy --out b --rate 1 --seeds 2 --steps 1,4 --names x,y"
    assert main(words.split()) == 0
    said = capsys.readouterr().out
    assert plain(results) == plain(rectified.open_run("b"))
    assert (Path("a/config.yaml").read_text()) == Path("b/config.yaml").read_text()
    assert said == f"{results.text}\n\nreport: b/report.html\n"


def test_a_run_is_its_folder_read_back():
    results = rectified.run("toy", out="a", rate=1.0)
    again = rectified.open_run(Path("a"))
    assert isinstance(again, rectified.Results)
    for one in (results, again):
        assert (one.folder, one.page) == (Path("a"), Path("a/report.html"))
        assert one.verb == "toy"
        assert one.settings["rate"] == 1.0
        assert [row["distance"] for row in one.rows] == [1.0, 2.0]
        assert one.rows[0]["half"] is None
        assert one.summary[0]["distance_mean"] == 2.0
        assert one.verdicts == []
        assert one.details == {"shown": [1, 2]}
        assert isinstance(one.network(), torch.nn.Linear)
        assert "1.00" in one.text
        assert "Toy report" in one.page.read_text()
    assert results.contents == again.contents
    assert results.text == again.text


def test_the_folder_is_the_commands_by_default():
    results = rectified.run("toy", data="digits")
    assert results.folder.parent == Path("runs")
    assert results.folder.name.startswith("toy-digits-")
    with pytest.raises(UserError, match="already holds a run: choose another --out"):
        rectified.run("toy", out=results.folder)


def test_a_variant_is_asked_for_by_its_setting():
    results = rectified.run("toy", out="a", twice=3)
    assert [row["distance"] for row in results.rows] == [1.5, 3.0]
    with pytest.raises(UserError, match="a is a run of toy, which saves no network"):
        results.network()


def test_a_sweep_is_a_run_like_others():
    results = rectified.run("sweep", of="toy", grid="seed=0..2", rate=1, workers=1, out="s")
    assert {row["distance"] for row in results.rows} == {1.0, 2.0, 3.0, 4.0}
    assert results.settings["settings"]["rate"] == 1.0
    assert "3 runs of rectified toy" in results.text
    assert rectified.open_run("s").contents == results.contents


@pytest.mark.parametrize(
    ("verb", "settings", "words"),
    [
        ("toi", {}, "unknown verb 'toi'; choose from demo, prune"),
        ("sample", {}, "sample makes no run; choose from demo, prune"),
        ("toy", {"rat": 1}, "unknown setting of toy 'rat'; choose from data, device"),
        ("toy", {"rate": "fast"}, "rate of toy must be a number, got 'fast'"),
        ("toy", {"steps": "1,x"}, "steps of toy must be a list of whole numbers, got '1,x'"),
        ("toy", {"rate": -1}, "rate must be at least 0, got -1"),
        ("toy", {"data": "nowhere"}, "no number in nowhere"),
        ("sweep", {"grid": "seed=0"}, "unknown verb to sweep 'None'; choose from prune"),
        ("sweep", {"of": "toy", "grid": "rate=-1"}, "rate must be at least 0"),
        ("sweep", {"of": "toy", "tries": 0, "grid": "seed=0"}, "tries must be at least 1, got 0"),
    ],
)
def test_what_is_impossible_is_refused_and_leaves_nothing(verb, settings, words, tmp_path):
    with pytest.raises(UserError, match=words):
        rectified.run(verb, out="a", **settings)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_for_a_person_who_watches(monkeypatch):
    from rectified.jobs import run as door

    shown = []
    perform = door.perform

    def listening(job, config, folder, facts, progress):
        shown.append(progress)
        return perform(job, config, folder, facts, progress)

    monkeypatch.setattr(door, "perform", listening)
    rectified.run("toy", out="a")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    rectified.run("toy", out="b")
    assert shown == [False, True]


def test_what_is_no_run_is_named():
    with pytest.raises(UserError, match=r"nowhere has no results\.json: it is not a finished run"):
        rectified.open_run("nowhere")


def test_rows_are_a_frame_where_there_is_pandas(monkeypatch):
    results = rectified.run("toy", out="a")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'rectified\[frames\]'"):
        results.frame()
    monkeypatch.undo()
    frame = pytest.importorskip("pandas") and results.frame()
    assert list(frame["distance"]) == [0.5, 1.0]


def test_names_of_the_door_are_there_and_others_are_not():
    assert {"run", "open_run", "Results"} <= set(dir(rectified))
    with pytest.raises(AttributeError, match="module 'rectified' has no attribute 'runn'"):
        _ = rectified.runn


def test_importing_the_door_loads_nothing_heavy():
    code = (
        "import rectified, sys; print(*sys.modules); rectified.run; print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = found.stdout.splitlines()
    assert not {"torch", "numpy", "yaml", "rectified.jobs"} & set(before.split())
    assert after == "True"
