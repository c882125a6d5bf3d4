"""The report of the main job as one web page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.reporting import page
from pipeline.reporting.report import FIGURES, about, facts, tables
from pipeline.reporting.text import Table
from pipeline.reporting.verdict import Report, verdict


def html(report: Report, figures: Path, origin: Mapping[str, str]) -> str:
    """The page: the verdict, figures, tables, what is known of planted data, and where the results come from.

    Args:
        report: the contents of ``report.json``.
        figures: folder of the drawn figures; those that are missing are left out.
        origin: what identifies the run, by its name, e.g. the commit.
    """
    said = verdict(report)
    drawn = [name for name in FIGURES if (figures / f"{name}.svg").exists()]
    pictures = [page.Section(FIGURES[name], [page.image(figures / f"{name}.svg", FIGURES[name])]) for name in drawn]
    shown = [page.Section(table.title, _table(table)) for table in tables(report)]
    sections = [
        *pictures[:1],
        *shown,
        *pictures[1:],
        page.Section("Comparisons and facts", [page.points(facts(report))]),
    ]
    if report.get("planted"):
        rows = [[one["feature"], str(one["rank"]), str(one["dim"])] for one in report["planted"]]
        sections.append(page.Section("Planted truth", [page.table(["field", "planted rank", "dimension"], rows)]))
    rows = [[name, value] for name, value in origin.items()]
    sections.append(page.Section("Where this comes from", [page.table(["what", "value"], rows)]))
    lead = [page.lead(page.points(said.points)), page.paragraph(about(report))]
    return page.page(said.headline, sections, lead)


def _table(table: Table) -> list[str]:
    note = [page.paragraph(table.note)] if table.note else []
    return [*note, page.table(table.head, table.rows)]
