"""The README's table of methods against the folder of methods and the committed comparison."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.workflow.plug import names

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "studies/overall/results"
SETTINGS = {
    "planted": ("methods", "synthetic"),
    "ML-100K": ("methods", "movielens-100k"),
    "ML-1M": ("methods_1m", "movielens-1m"),
}
MARKS = {"more": " ▲", "less": " ▼"}  # beside one dimension of its size, after correction


def tables(text: str, title: str) -> dict[str, dict[str, str]]:
    """The table below a title, by its first column."""
    _, _, rest = text.partition(title)
    lines = [line for line in rest.split("\n**")[0].splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def rows() -> dict[str, dict[str, str]]:
    text = (ROOT / "README.md").read_text()
    return tables(text, '<a id="methods"></a>')


def measured(method: str, setting: str) -> str:
    """What the README has to say of a method in a setting, from the study's own table."""
    profile, dataset = SETTINGS[setting]
    text = (RESULTS / profile / "table.md").read_text()
    size = "no budget" if method == "full" else "budget 10%"
    line = tables(text, f"**{dataset}, deepfm, {size}**")[method]
    return line["AUC"] + MARKS.get(line["AUC is"], "")


def results() -> Iterator[tuple[str, str, str]]:
    for cell, line in rows().items():
        (method,) = re.findall(r"`(\w+)`", cell)
        for setting in SETTINGS:
            yield method, setting, line[setting]


def test_every_method_has_a_line_and_every_line_a_method() -> None:
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows()))) == sorted(names("methods"))


@pytest.mark.parametrize(("method", "setting", "shown"), list(results()))
def test_the_results_are_those_of_the_committed_comparison(method: str, setting: str, shown: str) -> None:
    assert shown == measured(method, setting)
