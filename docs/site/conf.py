"""The site of README, docs and tables; `make docs` builds it with Sphinx from the pages that pages.py collects."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for autodoc

project = "AutoDim pipeline"
author = ""
project_copyright = ""
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
highlight_language = "none"  # of blocks that name none: output, not code
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # tables of studies may begin with a heading of the second level
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of torch say nothing about our classes
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_use_ivar = True
default_role = "py:obj"  # of single backticks in docstrings
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = html_show_sphinx = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", shortened)


def shortened(app: Any, what: str, name: str, of: Any, options: Any, given: str | None, returned: str | None) -> Any:
    """The signature of a class without what says nothing: the factories of defaults, and arguments of any kind."""
    if what != "class" or given is None:
        return None
    return "" if given.startswith("(*args") else re.sub(r"<(factory|class '\w+')>", "...", given), returned
