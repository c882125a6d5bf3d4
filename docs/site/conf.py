"""The site of README, docs and tables; `make docs` builds it with Sphinx from the pages that pages.py collects."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for autodoc

project = "AutoDim pipeline"
author = ""
project_copyright = ""
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # tables of studies may begin with a heading of the second level
autodoc_typehints = "description"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = html_show_sphinx = False
html_theme_options = {"source_view_link": ""}
