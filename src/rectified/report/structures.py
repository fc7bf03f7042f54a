"""Molecules on a page: where the 3-D viewer comes from, and the drawing that stands in for it.

3Dmol.js draws cartoons. It is an npm package of half a megabyte and is not ours to carry: `npm
install 3dmol` in the folder where reports are made, or in one above it, and the page takes the
script from there; or name the file in RECTIFIED_3DMOL. It is put into the page, which then opens
without a network. Without it, the page's own script turns the trace that is drawn here.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

VARIABLE = "RECTIFIED_3DMOL"
_FILE = Path("node_modules") / "3dmol" / "build" / "3Dmol-min.js"
_NOT_COUNTED = "window.$3Dmol = {notrack: true};"  # it would report every page to its home
_FIRST, _LAST = (11, 95, 165), (212, 84, 26)  # from the N- to the C-terminus


def viewer() -> str:
    """The script of 3Dmol.js, or nothing if it is not installed here."""
    named = os.environ.get(VARIABLE)
    here = Path.cwd()
    places = [Path(named)] if named else [folder / _FILE for folder in (here, *here.parents)]
    for place in places:
        if place.is_file():
            # a page's script may not hold the end of a script
            return place.read_text(encoding="utf-8").replace("</script", "<\\/script").strip()
    return ""


def trace(text: str) -> str:
    """A PDB file's C-alphas as an SVG: one line per bond, seen along the shortest principal axis.

    Example:
        >>> row = "ATOM      1  CA  ALA A   1    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00           C"
        >>> trace("\\n".join(row.format(x, 0, 0) for x in (0, 3.8, 7.6))).count("<line")
        2
    """
    points = c_alphas(text)
    points = points - points.mean(0)
    _, _, axes = np.linalg.svd(points, full_matrices=False)
    flat = points @ axes.T
    if flat.shape[1] < 3:
        flat = np.pad(flat, ((0, 0), (0, 3 - flat.shape[1])))
    reach = float(np.linalg.norm(points, axis=1).max()) or 1.0
    x, y, depth = (50 + 45 * flat[:, 0] / reach), (50 - 45 * flat[:, 1] / reach), flat[:, 2]
    count = len(points) - 1
    lines = [
        f'<line x1="{x[i]:.2f}" y1="{y[i]:.2f}" x2="{x[i + 1]:.2f}" y2="{y[i + 1]:.2f}" '
        f'stroke="{_colour(i / max(1, count - 1))}" '
        f'stroke-width="{2 + 0.6 * (depth[i] + depth[i + 1]) / reach:.2f}"/>'
        for i in range(count)
    ]
    return f'<svg viewBox="0 0 100 100" stroke-linecap="round">{"".join(lines)}</svg>'


def c_alphas(text: str) -> np.ndarray:
    """Places of the C-alphas of the first model of a PDB file."""
    rows = text.partition("ENDMDL")[0].splitlines()
    return np.array(
        [
            [float(row[column : column + 8]) for column in (30, 38, 46)]
            for row in rows
            if row.startswith("ATOM") and row[12:16].strip() == "CA"
        ]
    )


def _colour(share: float) -> str:
    mixed = (round(a + share * (b - a)) for a, b in zip(_FIRST, _LAST, strict=True))
    return f"rgb({','.join(map(str, mixed))})"
