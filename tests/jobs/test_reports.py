import json
import re

import pytest

from rectified.cli import main
from rectified.errors import UserError
from rectified.jobs import JOBS
from rectified.jobs.job import open_run
from rectified.jobs.report import combined
from tests.jobs.toy import ENTRY


@pytest.fixture(scope="module", autouse=True)
def toy():
    """A verb whose rows have undefined numbers, which are null in the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(JOBS, "toy", ENTRY)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, toy):
    """A run, and others of a verb that is not known."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["toy", "--quiet", "--out", str(folder / "first")]) == 0
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
    for title in (
        "Runs",
        "first: What was found",
        "first: More",
        "first: How this was made",
        "other",
    ):
        assert title in found
    assert "<nav" in page


def test_undefined_numbers_are_gaps(runs):
    assert {row["half"] for row in open_run(runs / "first").rows} == {None}
    assert "\N{EN DASH}" in combined([runs / "first"])


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


def test_a_run_without_its_details_is_named(runs, tmp_path):
    (tmp_path / "results.json").write_text((runs / "first" / "results.json").read_text())
    with pytest.raises(UserError, match=r"cannot be shown \(KeyError.*it has no details\.json"):
        combined([tmp_path])


def test_results_of_a_verb_that_leaves_none_are_refused(runs, tmp_path):
    text = (runs / "other" / "results.json").read_text().replace('"measure"', '"sample"')
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json is of sample, which leaves no results"):
        combined([tmp_path])
