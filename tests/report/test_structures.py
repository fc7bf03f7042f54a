"""Structures on a page: a still drawing, a viewer where one is installed, and nothing else."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

import pytest

from rectified.errors import UserError
from rectified.report import Page, Section, Structures, Text, render
from rectified.report.structures import VARIABLE, c_alphas, trace, viewer

from .test_browser import CHROMIUM, opened

ROW = "ATOM  {:5d}  CA  ALA A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00           C"
MODEL = "\n".join(ROW.format(n, n, 3.8 * n, n % 2, 0.5 * n * n) for n in range(1, 9))


def page(text: str = MODEL) -> Page:
    part = Structures("Samples", {"sample <1>": text}, alt="a backbone", note="Drag.")
    return Page("Protein", "", (Section("Backbones", (part,)),))


@pytest.fixture
def no_viewer(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing.js"))


def test_a_trace_has_a_line_for_every_bond():
    assert c_alphas(MODEL).shape == (8, 3)
    assert trace(MODEL).count("<line") == 7
    assert trace(MODEL + "\nENDMDL\n" + MODEL).count("<line") == 7  # the first model alone


def test_the_page_holds_drawing_and_structure_and_escapes_names(no_viewer):
    html = render(page())
    assert "sample &lt;1&gt;" in html
    assert html.count("<line") == 7
    assert 'data-pdb="ATOM' in html
    assert html.count("<script") == 1


def test_an_installed_viewer_is_put_into_the_page_and_allowed_by_its_hash(monkeypatch, tmp_path):
    script = "window.$3Dmol = {}; // </script>"
    (tmp_path / "3Dmol-min.js").write_text(script)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "3Dmol-min.js"))
    html = render(page())
    safe = script.replace("</script", "<\\/script")
    digest = b64encode(sha256(safe.encode()).digest()).decode()
    assert f"sha256-{digest}" in html
    assert f"<script>{safe}</script>" in html
    plain = render(Page("Other", "", (Section("A", (Text(("no structure",)),)),)))
    assert "$3Dmol = {}" not in plain  # half a megabyte, where it is not needed


def test_npms_package_is_found_in_a_folder_above(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    file = tmp_path / "node_modules" / "3dmol" / "build" / "3Dmol-min.js"
    file.parent.mkdir(parents=True)
    file.write_text("let x = 1;")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert viewer() == "let x = 1;"


@pytest.mark.parametrize("models", [{}, {"a": "no atoms"}, {"a": ROW.format(1, 1, 0, 0, 0)}])
def test_structures_without_atoms_are_refused(models):
    with pytest.raises(UserError, match="must h"):
        Structures("Samples", models, alt="")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_a_trace_turns_when_it_is_dragged(no_viewer, tmp_path):
    drag = """
      const place = document.querySelector("[data-pdb]");
      const before = place.innerHTML;
      place.dispatchEvent(new PointerEvent("pointermove", {buttons: 1, movementX: 40}));
      const lines = [...place.querySelectorAll("line")];
      const numbers = lines.map((line) => Number(line.getAttribute("x1")));
      document.title = `${before !== place.innerHTML} ${numbers.every((x) => x > 0 && x < 100)}`;
    """
    html = re.sub(r"<meta http-equiv=[^>]*>", "", render(page()))
    document, console = opened(html.replace("</body>", f"<script>{drag}</script></body>"), tmp_path)
    assert console == []
    assert "<title>true true</title>" in document
