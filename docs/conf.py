"""The site: the pages beside this file, by Sphinx. `make docs` builds it into docs/_build/html."""

from importlib.metadata import version as installed

project = "rectified"
author = "the authors of rectified"
version = release = installed("rectified")
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # `page.md#a-heading` can be linked to
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "rectified"
html_static_path: list[str] = []
html_show_sourcelink = False
html_show_copyright = False
