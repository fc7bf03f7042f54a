"""The page in a real browser, where one is on the PATH."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rectified.report import Page, render

from .sample_pages import hostile, typical

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--v=0",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")


def opened(html: str, folder: Path, *extra: str) -> tuple[str, list[str]]:
    """The document once the script has run, and what the console said."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, *extra, profile, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)


def with_script(page: Page, script: str) -> str:
    """The page without its policy, and with a hand that clicks."""
    html = re.sub(r"<meta http-equiv=[^>]*>", "", render(page))
    return html.replace("</body>", f"<script>{script}</script></body>")


@pytest.mark.parametrize("page", [typical, hostile])
def test_the_page_opens_without_a_word_in_the_console(page, tmp_path):
    document, console = opened(render(page()), tmp_path)
    assert console == []
    assert document.count("<svg") == render(page()).count("<svg") > 0
    assert '<button type="button">Copy</button>' in document  # hidden until the script has run


def test_the_console_is_really_heard(tmp_path):
    _, console = opened(with_script(typical(), "console.error('heard')"), tmp_path)
    assert "heard" in console[0]


SORTING = """
const names = () => [...document.querySelectorAll("tbody th")].map((cell) => cell.textContent);
const heads = [...document.querySelectorAll("thead th")];
const seen = (column) => {
  heads[column].querySelector("button").click();
  return `${names().join()} ${heads.map((head) => head.ariaSort).join()}`;
};
document.title = [0, 0, 1, 1, 2, 2, 3].map(seen).join("; ");
"""


def test_a_click_on_a_head_sorts_the_rows(tmp_path):
    document, console = opened(with_script(typical(), SORTING), tmp_path)
    (title,) = re.findall("<title>(.*?)</title>", document)
    assert console == []
    assert title.split("; ") == [
        "conv1,layer1.0.conv1,linear ascending,none,none,none",
        "linear,layer1.0.conv1,conv1 descending,none,none,none",
        "layer1.0.conv1,conv1,linear none,ascending,none,none",
        "linear,conv1,layer1.0.conv1 none,descending,none,none",
        # 9 comes before 10, as numbers do; the gap comes last in either direction
        "layer1.0.conv1,conv1,linear none,none,ascending,none",
        "conv1,layer1.0.conv1,linear none,none,descending,none",
        "conv1,linear,layer1.0.conv1 none,none,none,ascending",
    ]


def test_the_page_does_not_grow_wider_than_a_phone(tmp_path):
    # A frame of 320 px stands for the phone: a window of a browser cannot be that narrow.
    (tmp_path / "inner.html").write_text(render(typical()), encoding="utf-8")
    outer = (
        "<iframe src='inner.html' style='width: 320px; height: 600px; border: 0'></iframe>"
        "<script>onload = () => { const page = frames[0].document.documentElement;"
        "const excess = page.scrollWidth - page.clientWidth;"
        "document.title = `${frames[0].innerWidth} ${excess}` }</script>"
    )
    document, _ = opened(outer, tmp_path, "--allow-file-access-from-files")
    assert "<title>320 0</title>" in document
