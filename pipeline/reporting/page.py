"""Self-contained web pages: one file with its figures and its styles for light mode, dark mode, phones and print."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

LONG = 40  # a table with more rows is collapsed

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --line: #ddd; --soft: #f4f4f4; --link: #1a5fb4; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --paper: #151515; --line: #3a3a3a; --soft: #222; --link: #8ab8f0; }
  svg { filter: invert(.9) hue-rotate(180deg); }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2.2rem; scroll-margin-top: 1rem; }
a { color: var(--link); } nav ul { columns: 22rem; padding-left: 1.2rem; } li { margin: .25rem 0; }
p, li { max-width: 60rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
.lead ul { padding-left: 1rem; }
.lead { background: var(--soft); border-left: 4px solid var(--link); padding: .3rem 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { background: var(--soft); white-space: normal; vertical-align: bottom; }
pre { background: var(--soft); padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--link); }
@media (max-width: 40rem) { body { margin: 1rem auto; } figure svg { max-width: none; } }
@media print { body { max-width: none; margin: 0; font-size: 10pt; } .wide { overflow: visible; }
  table { font-size: 7pt; } th, td { white-space: normal; padding: .1rem .3rem; } h2 { break-after: avoid; }
  figure, svg, tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page, which the contents list.

    Args:
        title: plain text.
        body: pieces of HTML, made by the other functions.
    """

    title: str
    body: Sequence[str]


def page(title: str, sections: Sequence[Section], lead: Sequence[str] = ()) -> str:
    """The HTML of the file; several sections have a list of contents.

    Args:
        title: plain text.
        sections: of the page.
        lead: pieces of HTML above the contents.
    """
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    head = f'<html lang="en"><head>{head}<style>{STYLE}</style></head>'
    marks = _marks([section.title for section in sections])
    entries = "\n".join(
        f'<li><a href="#{mark}">{escape(section.title)}</a></li>' for mark, section in zip(marks, sections, strict=True)
    )
    parts = [f"<h1>{escape(title)}</h1>", *lead]
    if len(sections) > 1:
        parts.append(f'<nav aria-label="Contents"><ul>\n{entries}\n</ul></nav>')
    for mark, section in zip(marks, sections, strict=True):
        parts += [f'<h2 id="{mark}">{escape(section.title)}</h2>', *section.body]
    inner = "\n".join(parts)
    return f"<!doctype html>\n{head}<body>\n{inner}\n</body></html>\n"


def _marks(titles: Sequence[str]) -> list[str]:
    """An anchor for each title, all different."""
    marks: list[str] = []
    for title in titles:
        mark = re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
        marks.append(mark if mark not in marks else f"{mark}-{len(marks)}")
    return marks


def rich(text: str) -> str:
    """Plain text, with code between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def paragraph(text: str) -> str:
    return f"<p>{rich(text)}</p>"


def titled(title: str, text: str) -> str:
    """A paragraph that begins with a title."""
    return f"<p><strong>{rich(title)}.</strong> {rich(text)}</p>"


def points(lines: Sequence[str | tuple[str, str]]) -> str:
    """A list; a point may have a title of its own."""
    items = [
        rich(line) if isinstance(line, str) else f"<strong>{rich(line[0])}.</strong> {rich(line[1])}" for line in lines
    ]
    return "<ul>\n" + "\n".join(f"<li>{item}</li>" for item in items) + "\n</ul>"


def lead(*pieces: str) -> str:
    """Pieces of HTML that stand out."""
    return f'<div class="lead">{"".join(pieces)}</div>'


def code(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with cells of plain text; one with more than `LONG` rows is collapsed."""
    whole = plain_table(names, rows)
    return details(f"{len(rows):,} rows", whole) if len(rows) > LONG else whole


def plain_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with cells of plain text, of any length; one that is wider than the page scrolls on its own."""
    head = "".join(f"<th>{escape(name).replace('.', '.<wbr>')}</th>" for name in names)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'


def image(path: Path, text: str) -> str:
    """An SVG file as a part of the page, with a description for readers who cannot see it.

    The ids of its parts get the name of the file in front and a number made of its content, since several figures share
    a page. The folder is not in them: it may be a draft's, whose name is another one each time.
    """
    svg = path.read_text(encoding="utf-8")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    name = re.sub(r"\W+", "-", path.stem).strip("-")
    mark = f"{name}-{zlib.crc32(svg.encode()):08x}"
    svg = re.sub(r'\bid="', f'id="{mark}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{mark}-", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(text)}" ', 1)
    return f'<figure class="wide">{svg.strip()}</figure>'


def details(summary: str, body: str) -> str:
    """Collapsed HTML that opens at a click on its summary, which is plain text."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
