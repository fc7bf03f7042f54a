"""`rectified report` over runs of every verb: one page, whose contents name what each found."""

import re
import shutil

import pytest

from rectified.jobs import JOBS
from rectified.jobs.job import open_run
from rectified.jobs.report import combined
from tests.report.test_browser import CHROMIUM, opened
from tests.torture import material


@pytest.fixture(scope="module")
def folders():
    for package in ("diffusers", "transformers", "gemmi", "biotite"):
        pytest.importorskip(package)
    return material.finished()


@pytest.fixture(scope="module")
def page(folders):
    return combined(folders)


def test_every_verb_that_has_a_report_is_there(folders):
    presets = {verb for verb, entry in JOBS.items() if entry.is_preset}
    assert {open_run(folder).verb for folder in folders} == {*JOBS, "sweep"} - presets


def test_every_page_begins_with_what_the_terminal_says(folders):
    for folder in folders:
        results = open_run(folder)
        first, *others = results.sections
        assert first.is_brief, results.verb
        assert not all(section.is_brief for section in others), results.verb
        assert results.text


def test_the_contents_lead_to_what_every_run_found(folders, page):
    contents = page.partition("<nav")[2].partition("</nav>")[0]
    links = dict(re.findall(r'<a href="#([^"]+)">([^<]+)</a>', contents))
    assert all(f'id="{place}"' in page for place in links)
    for folder in folders:
        own = [title for title in links.values() if title.startswith(f"{folder.name}: ")]
        assert any("What was found" in title or "runs" in title for title in own), own
        assert len(own) > 1


def test_no_id_stands_twice(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_overview_names_data_and_seeds_of_each(page):
    overview = page.partition("What this page covers")[2].partition("</table>")[0]
    for word in ("digits", "moons", "chains.npz", "unconditional"):
        assert word in overview
    assert ">0<" not in overview  # rows without a seed are of those that the settings name


def test_a_scattering_run_has_no_bound_where_none_is_known(page):
    assert "values are within their bounds" in page
    assert "bounds are broken" not in page


def test_a_hostile_folder_name_stays_text(folders, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    shutil.copytree(folders[0], tmp_path / name)
    page = combined([tmp_path / name, folders[1]])
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;: What was found" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_the_page_opens_in_a_browser_without_a_word(page, tmp_path):
    document, console = opened(page, tmp_path)
    assert console == []
    assert document.count("<h2") == page.count("<h2")
