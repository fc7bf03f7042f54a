"""What the documentation refers to is there; the site itself is `make docs`."""

import re
from pathlib import Path

import pytest

from rectified.binary.estimators import ESTIMATORS
from rectified.flow.paths import PATHS
from rectified.flow.solvers import SOLVERS
from rectified.flow.times import TIMES
from rectified.jobs import JOBS, TOOLS
from rectified.pruning.scores import SCORES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^    |`)rectified ([a-z]+)", re.MULTILINE)


def anchor(heading):
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_lead_somewhere(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, place = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if place and target.suffix == ".md":
            assert place in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_verbs_that_there_are(page):
    text = page.read_text(encoding="utf-8")
    assert set(COMMAND.findall(text)) <= {*JOBS, *TOOLS}, page.name


def test_every_picture_is_shown_in_the_gallery_with_its_command():
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for picture in sorted((ROOT / "docs" / "images").iterdir()):
        section = gallery.partition(f"(images/{picture.name})")
        assert section[1], f"{picture.name} is not in the gallery"
        after = section[2].partition("\n## ")[0]
        assert "    rectified " in after, f"{picture.name} has no command beside it"


def test_every_page_is_in_the_sites_contents():
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").partition("toctree}")[2]
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or f"\n{page.stem}\n" in contents, page.name


@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("pruning", SCORES),
        ("binary", ESTIMATORS),
        ("diffusion", {name: path for name, path in PATHS.items() if name != "straight"}),
        ("flow", {**TIMES, **SOLVERS}),
    ],
)
def test_every_row_of_a_table_of_names_has_a_line_in_the_docs(page, table):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    missing = [name for name in table if f"`{name}`" not in text]
    assert not missing
