import json
import re

import pytest

from rectified.cli import main
from rectified.errors import UserError
from rectified.jobs.reports import combined


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One seed, so that intervals are null in the file; and a verb that has no report."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [
        "prune",
        "--limit",
        "200",
        "--epochs",
        "1",
        "--cycles",
        "1",
        "--seed",
        "0",
        "--quiet",
        "--out",
    ]
    assert main([*flags, str(folder / "first")]) == 0
    other = folder / "other"
    other.mkdir()
    summary = [{"case": "a<b", "worst_ratio": 0.5}, {"case": "c", "worst_ratio": None, "n": [1]}]
    results = {"verb": "measure", "config": {"data": "x"}, "environment": {}, "rows": []}
    (other / "results.json").write_text(json.dumps({**results, "summary": summary}))
    empty = folder / "empty"
    empty.mkdir()
    (empty / "results.json").write_text(json.dumps({**results, "summary": []}))
    return folder


def headings(page):
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page, re.DOTALL)


def test_a_page_over_runs_has_the_sections_of_each_and_a_table_of_contents(runs):
    page = combined([runs / "first", runs / "other"])
    found = " ".join(headings(page))
    for title in ("Runs", "first: What was found", "first: Layer by layer", "other"):
        assert title in found
    assert "<nav" in page


def test_undefined_numbers_come_back_from_the_file_as_such(runs):
    assert "one seed: no interval" in combined([runs / "first"])


def test_an_unknown_verb_shows_its_summary(runs):
    page = combined([runs / "other"])
    assert "a&lt;b" in page
    assert "worst_<wbr>ratio" in page or "worst_ratio" in page
    assert "This run has no summary." in combined([runs / "empty"])


def test_runs_of_one_name_are_told_apart_by_their_paths(runs, tmp_path):
    twin = tmp_path / "other"
    twin.mkdir()
    (twin / "results.json").write_text((runs / "other" / "results.json").read_text())
    page = combined([runs / "other", twin])
    assert str(twin) in page
    assert str(runs / "other") in page


def test_the_command_writes_the_page_and_its_folder(runs, tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    assert main(["report", str(runs / "other"), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == combined([runs / "other"])
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "must name at least one run folder"),
        (["other", "first/../other"], "must name every run once"),
        (["nowhere"], r"nowhere has no results\.json: it is not a finished run"),
    ],
)
def test_what_is_no_run_is_named(runs, names, message):
    with pytest.raises(UserError, match=message):
        combined([runs / name for name in names])


def test_a_prune_run_needs_its_details(runs, tmp_path):
    (tmp_path / "results.json").write_text((runs / "first" / "results.json").read_text())
    with pytest.raises(UserError, match=r"has no details\.json"):
        combined([tmp_path])
