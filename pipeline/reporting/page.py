"""Self-contained web pages: one file with its images and its styles for light mode, dark mode and print."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --line: #ddd; --soft: #f4f4f4; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --paper: #151515; --line: #3a3a3a; --soft: #222; }
  img { filter: invert(1) hue-rotate(180deg); }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th { background: var(--soft); white-space: normal; vertical-align: bottom; }
pre { background: var(--soft); padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { body { max-width: none; margin: 0; font-size: 10pt; } .wide { overflow: visible; }
  table { font-size: 7pt; } th, td { white-space: normal; padding: .1rem .3rem; } h2 { break-after: avoid; }
  img, tr { break-inside: avoid; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """The HTML of the file.

    Args:
        title: plain text.
        body: pieces of HTML, made by the other functions.
    """
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    inner = "\n".join([f"<h1>{escape(title)}</h1>", *body])
    head = f'<html lang="en"><head>{head}<style>{STYLE}</style></head>'
    return f"<!doctype html>\n{head}<body>\n{inner}\n</body></html>\n"


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def titled(title: str, text: str) -> str:
    """A paragraph that begins with a title."""
    return f"<p><strong>{escape(title)}.</strong> {escape(text)}</p>"


def code(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with cells of plain text; a table wider than the page scrolls on its own."""
    head = "".join(f"<th>{escape(name).replace('.', '.<wbr>')}</th>" for name in names)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'


def image(path: Path, text: str) -> str:
    """An embedded SVG file, with a description for readers who cannot see it."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(text)}" src="data:image/svg+xml;base64,{content}">'


def details(summary: str, body: str) -> str:
    """Collapsed HTML that opens at a click on its summary, which is plain text."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
