"""A page is one file that needs nothing else, with a list of contents, and figures that do not disturb each other."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.reporting import page, report_page
from pipeline.reporting.style import new_figure, save
from tests.reporting.reports import REPORT


class Elements(HTMLParser):
    """The ids, the links, and the elements that are open, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href") and value]
        self.links += [f"#{mark}" for value in found.values() for mark in re.findall(r"url\(#([^)]+)\)", value or "")]
        if tag not in ("meta", "br", "wbr", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_link_leads_to_a_place_on_the_page_and_every_place_is_one(tmp_path: Path) -> None:
    pictures = []
    for name in ("one", "two"):
        figure = new_figure(3, 2)
        figure.subplots().plot([1, 2], [3, 4], "o-")
        save(figure, tmp_path / f"{name}.png")
        pictures.append(page.image(tmp_path / f"{name}.svg", "a <line>"))
    made = page.page("Two & one", [page.Section("A $title$", pictures), page.Section("A title", ["<p>x</p>"])])
    elements = Elements(made)
    assert not elements.open and len(set(elements.ids)) == len(elements.ids)
    assert elements.links and all(link.startswith("#") and link[1:] in elements.ids for link in elements.links)
    assert "<h1>Two &amp; one</h1>" in made and 'aria-label="a &lt;line&gt;"' in made
    assert not re.findall(r"<(?:script|link|iframe)|@import|url\((?!#)", made)


def test_a_figure_is_the_same_from_whatever_folder(tmp_path: Path) -> None:
    """A draft's folder has the number of its process in its name."""
    figure = new_figure(3, 2)
    figure.subplots().plot([1, 2], [3, 4], "o-")
    for folder in ("draft.1", "draft.2"):
        (tmp_path / folder).mkdir()
        save(figure, tmp_path / folder / "one.png")
    first, second = (page.image(tmp_path / folder / "one.svg", "a line") for folder in ("draft.1", "draft.2"))
    assert first == second


def test_a_page_of_one_section_has_no_contents_and_equal_titles_have_their_own_places() -> None:
    assert "<nav" not in page.page("x", [page.Section("a", [])])
    ids = Elements(page.page("x", [page.Section("a", []), page.Section("a", []), page.Section("?", [])])).ids
    assert len(set(ids)) == 3


@pytest.mark.parametrize(("rows", "collapsed"), [(40, False), (41, True)])
def test_a_long_table_is_collapsed(rows: int, collapsed: bool) -> None:
    made = page.table(["a", "b"], [["1", "<2>"]] * rows)
    assert made.startswith("<details><summary>41 rows</summary>") == collapsed
    assert made.count("<td>&lt;2&gt;</td>") == rows


def test_code_stands_between_backticks_and_nothing_else_is_markup() -> None:
    assert page.paragraph("call `a < b` and <i>") == "<p>call <code>a &lt; b</code> and &lt;i&gt;</p>"
    assert page.points([("A", "b"), "c"]) == "<ul>\n<li><strong>A.</strong> b</li>\n<li>c</li>\n</ul>"


def test_the_page_of_a_report_has_its_verdict_its_tables_its_figures_and_its_origin(tmp_path: Path) -> None:
    save(new_figure(3, 2), tmp_path / "trajectories.png")
    planted = {"planted": [{"feature": "a", "rank": 3, "dim": 2}], "rank_correlation": None, "best_possible": None}
    made = report_page.html(REPORT | planted, tmp_path, {"commit": "c0ffee"})
    elements = Elements(made)
    assert not elements.open and all(link[1:] in elements.ids for link in elements.links)
    assert made.count("<svg") == 1 and 'aria-label="The search over time"' in made
    assert "<h1>Deploy full, coded: 300 bytes of tables in place of 8,000 (3.8%; whole model: 3.8%).</h1>" in made
    assert made.index("<strong>On test.</strong>") < made.index("<nav") < made.index("<td>searched</td>")
    assert "<tr><td>a</td><td>3</td><td>2</td></tr>" in made and "<td>c0ffee</td>" in made
