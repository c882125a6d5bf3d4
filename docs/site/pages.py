"""Collects the pages of the site: README, docs, every file that they link to, and the references.

`python docs/site/pages.py FOLDER` writes them to a folder, where a page keeps its path in the repository, so that its
links work in both places. Only README.md becomes index.md, the first page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.workflow.params import FILE, Params  # noqa: E402
from pipeline.workflow.reference import Entry, entries  # noqa: E402
from pipeline.workflow.validation import shown  # noqa: E402
from pipeline.workflow.yaml_values import read_yaml  # noqa: E402

REFERENCE = Path(__file__).with_name("reference.md")
HOME, INDEX = Path("README.md"), Path("index.md")
FIRST = [HOME, Path("CHANGELOG.md"), Path("CONTRIBUTING.md"), Path("data/README.md")]
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
UNBROKEN = re.compile(r"(?<=\d) (?=[±%])|(?<=±) (?=\d)")  # a figure, its deviation and its unit stay on one line
CONTENTS = {  # of the site, below the first page; all other pages are tables
    "Use it": [
        "docs/tutorial",
        "docs/own-data",
        "docs/library",
        "data/README",
        "docs/settings",
        "docs/methods",
        "docs/serving",
        "docs/coding",
        "docs/retrieval",
        "docs/chain",
        "docs/scale",
        "docs/deploy",
        "docs/faults",
        "docs/faq",
    ],
    "What we found": ["docs/results", "docs/speed", "docs/studies"],
    "Change it": ["docs/architecture", "docs/extending", "CONTRIBUTING", "CHANGELOG"],
    "Reference": ["docs/parameters", "docs/reference"],
}


def main(folder: Path) -> None:
    """Write all pages."""
    todo = [*FIRST, *(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md"))]
    texts: dict[Path, str] = {}
    while todo:
        page = todo.pop()
        if page.suffix != ".md":
            write(folder / page, (ROOT / page).read_bytes())
        elif page not in texts:
            text = (ROOT / page).read_text()
            texts[page] = text if text.startswith("#") else f"# {page.parent}\n\n{text}"  # Sphinx needs a title
            todo += [linked(page, link) for link in LINK.findall(texts[page])]
    texts[HOME] += contents(sorted(str(page.with_suffix("")) for page in texts))
    texts[Path("docs/parameters.md")] = parameters()
    texts[Path("docs/reference.md")] = REFERENCE.read_text()
    for page, text in texts.items():
        name = INDEX if page == HOME else page
        text = LINK.sub(lambda link, page=page: homeward(page, link[0]), text)
        write(folder / name, UNBROKEN.sub("\u00a0", text).encode())


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def linked(page: Path, link: str) -> Path:
    """The file that a page links to.

    Raises:
        ValueError: if there is no such file in the repository.
    """
    target = (ROOT / page).parent.joinpath(link).resolve()
    if not target.is_relative_to(ROOT) or not target.is_file():
        raise ValueError(f"{page} links to {link}, which is no file of the repository")
    return target.relative_to(ROOT)


def homeward(page: Path, link: str) -> str:
    """The link, which leads to index.md in place of README.md."""
    return link.replace(HOME.name, INDEX.name) if linked(page, link) == HOME else link


def contents(pages: list[str]) -> str:
    """The trees of the pages, which Sphinx shows beside each of them."""
    placed = {HOME.stem, *(page for group in CONTENTS.values() for page in group)}
    trees = []
    for caption, group in {**CONTENTS, "Tables": [page for page in pages if page not in placed]}.items():
        options = [":hidden:", ":maxdepth: 1", f":caption: {caption}"]
        trees += ["", "```{toctree}", *options, "", *map(titled, group), "```"]
    return "\n".join([*trees, ""])


def titled(page: str) -> str:
    """The entry of a page in a tree; tables that look alike are named by their folders."""
    study = re.fullmatch(r"(?:studies/)?(.*)/results/(.*)/table", page)
    return f"{study[1]}, {study[2]} <{page}>" if study else page


def parameters() -> str:
    """The page of all parameters, made from the classes that check them."""
    lines = [
        "# Parameters",
        "",
        f"All parameters of `{FILE}`, with the values that it holds. `python -m stages.search --help` shows those of "
        "one stage. The options of methods, backbones and tasks are described in their files, and the options of data "
        "sets in [Data](../data/README.md).",
    ]
    every = entries(read_yaml(ROOT / FILE))
    for section in Params.model_fields:
        lines += ["", f"## {section}", "", "| parameter | value | meaning | valid |", "| --- | --- | --- | --- |"]
        lines += [row(entry) for entry in every if entry.key.split(".")[0] == section]
    return "\n".join([*lines, ""])


def row(entry: Entry) -> str:
    """A line of the table of parameters."""
    value = shown(entry.value)
    cells = f"`{entry.key}`", f"`{value}`" if len(value) <= 60 else "see the file", entry.meaning, entry.valid
    return " | ".join(["", *(cell.replace("|", r"\|") for cell in cells), ""]).strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
