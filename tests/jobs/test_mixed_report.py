"""`rectified report` over runs of every verb: one page, whose contents name what each found."""

import re
import shutil

import pytest

from rectified.cli import main
from rectified.jobs import (
    binarize_report,
    diffusion_pipeline,
    flow_report,
    protein_report,
    prune_report,
    scatter_report,
    sweep_report,
)
from rectified.jobs.reports import SECTIONS, combined
from rectified.runs import read_results
from tests.report.test_browser import CHROMIUM, opened
from tests.torture import material

REPORTS = (
    *(binarize_report, flow_report, protein_report, prune_report, scatter_report, sweep_report),
)
SMALL = "--updates 4 --pairs 20 --pair-steps 2 --samples 12 --batch-size 8 --seed 0 --steps 1,2"
COMMANDS = {
    "pruned": "prune --limit 200 --epochs 1 --cycles 1 --seed 0",
    "binary": "binarize --model mlp --limit 200 --epochs 2 --seeds 2 --estimator ste,float",
    "moons": f"flow --data moons --reflow-updates 4 {SMALL}",
    "form": f"diffusion --data moons --phases 2 --rectify-updates 4 {SMALL}",
    "pipeline": "diffusion --pipeline {pipeline} --pairs 4 --pair-steps 2 --rectify-updates 2 "
    "--batch-size 4 --samples 2 --steps 1,2",
    "protein": "protein --data {chains} --lengths 12 --steps 4,3 --samples 2 --crop 12 "
    "--shortest 12 --epochs 1 --batch-size 2 --pairs 4 --pair-steps 2 --reflow-epochs 1",
    "scattered": "scatter --networks ridgelet_modulus --grid 32 --steps 2 --limit 40 "
    "--orientations 2",
    "grid": 'sweep prune --grid "seed=0,1" --limit 200 --epochs 1 --cycles 1 --workers 1',
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A finished run of each verb, without the page of its own."""
    place = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        for report in REPORTS:
            patch.setattr(report, "page", lambda *_: "")
        patch.setattr(diffusion_pipeline, "GEOMETRY_STEPS", 4)
        material.small_proteins(patch.setattr, patch.setitem)
        for name, words in COMMANDS.items():
            assert main([*material.split(words), "--quiet", "--out", str(place / name)]) == 0
    return [place / name for name in COMMANDS]


@pytest.fixture(scope="module")
def page(folders):
    return combined(folders)


def test_every_verb_that_has_a_report_is_there(folders):
    assert {read_results(folder)["verb"] for folder in folders} == set(SECTIONS)


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
    for word in ("digits", "moons", "chains.npz", "pipeline"):
        assert word in overview


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
