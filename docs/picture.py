"""Cut figures out of a report, as a picture: by a headless Chromium, which must be installed.

    python docs/picture.py runs/moons/report.html docs/images/flow.png "Trajectories, first flow" \
        "Trajectories, 2rf, round 2"

Figures are named by the beginnings of their titles, and stand side by side.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
MARGIN = 16  # pixels around what is not white
LAYOUT = """
body { margin: 0; padding: 16px; max-width: none; background: white; }
main { display: grid; grid-template-columns: repeat(%d, minmax(0, 1fr)); gap: 16px; }
figure { margin: 0; }
"""


def page_of(report: str, titles: list[str]) -> str:
    """The report with these figures alone."""
    figures = re.findall(r"<figure>.*?</figure>", report, re.DOTALL)
    chosen = [f for t in titles for f in figures if f"<figcaption>{t}" in f]
    if len(chosen) != len(titles):
        raise SystemExit(f"{len(titles)} figures are named, {len(chosen)} are in the report")
    head, _, rest = report.partition("<body>")
    scripts = "".join(re.findall(r"<script>.*?</script>", rest, re.DOTALL))
    layout = LAYOUT % len(titles)
    head = head.replace("</head>", f"<style>{layout}</style></head>")
    return f"{head}<body><main>{''.join(chosen)}</main>{scripts}</body></html>"


def main(report: Path, picture: Path, titles: list[str]) -> None:
    """Write the picture, cut to what is drawn."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed")
    with tempfile.TemporaryDirectory() as place:
        page, whole = Path(place) / "page.html", Path(place) / "whole.png"
        page.write_text(page_of(report.read_text(encoding="utf-8"), titles), encoding="utf-8")
        words = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--no-first-run"]
        words += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # 3-D without a GPU
        words += [f"--user-data-dir={place}/profile", "--window-size=1120,2400"]
        words += ["--virtual-time-budget=4000", f"--screenshot={whole}", page.as_uri()]
        subprocess.run(words, check=True, capture_output=True, timeout=120)
        with Image.open(whole) as image:
            shown = image.convert("RGB")
        box = ImageChops.difference(shown, Image.new("RGB", shown.size, "white")).getbbox()
        assert box is not None, "the picture is empty"
        corner = (min(box[2] + MARGIN, shown.width), min(box[3] + MARGIN, shown.height))
        shown.crop((0, 0, *corner)).quantize(128).save(picture, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
