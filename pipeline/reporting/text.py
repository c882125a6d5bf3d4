"""Tables and numbers in Markdown, written the same way in all reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.metrics.difference import SEEDS_ALONE, Difference


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Args:
        title: what it shows.
        head: names of the columns.
        rows: cells of each row, as many as there are columns.
        note: facts that the reader needs, e.g. what the intervals cover.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        return f"**{self.title}.** {self.note}".strip() + "\n\n" + table(self.head, self.rows)


def read_tables(text: str) -> tuple[list[str], list[Table]]:
    """The paragraphs before the first table, without titles, and the tables of a text that has those of
    `Table.markdown`."""
    blocks = text.strip().split("\n\n")
    tables, before = [], len(blocks)
    for place, block in enumerate(blocks):
        if block.startswith("| ") and place:
            title = re.fullmatch(r"\*\*(.+?)\.?\*\*\s*(.*)", blocks[place - 1], re.DOTALL)
            head, _, *rows = (_cells(line) for line in block.split("\n"))
            tables.append(Table(title[1], head, rows, title[2]) if title else Table("", head, rows))
            before = min(before, place - 1 if title else place)
    return [block for block in blocks[:before] if not block.startswith("#")], tables


def _cells(line: str) -> list[str]:
    """The cells of a line that `table` wrote."""
    return [cell.replace("\\|", "|") for cell in line[2:-2].split(" | ")]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, ["---"] * len(head), *rows)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number_of(number: int, one: str, many: str | None = None) -> str:
    """ "1 cell", "1,200 cells"; ``many`` is the plural where it is not the singular with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def mean_sd(values: Sequence[float] | Any, digits: int = 4) -> str:
    """ "0.7880 ± 0.0019": the mean, and the standard deviation if there is more than one value."""
    array = np.asarray(values, dtype=float)
    text = f"{array.mean():,.{digits}f}"
    return text if len(array) < 2 else f"{text} ± {array.std(ddof=1):,.{digits}f}"


def with_interval(difference: Difference, digits: int = 4) -> str:
    """ "+0.0125 (+0.0102 to +0.0150)", with a remark if the interval covers seeds alone; "+0.0125" without interval."""
    if difference.interval is None:
        return f"{difference.mean:+.{digits}f}"
    low, high = difference.interval
    covers = f", {SEEDS_ALONE}" if difference.covers == SEEDS_ALONE else ""
    return f"{difference.mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}{covers})"


def p_value(value: float | None) -> str:
    """ "0.012" or "<.001"; empty if there is none."""
    return "" if value is None else f"{value:.3f}" if value >= 0.001 else "<.001"
