"""The page on all studies: a section for the results of each, with a conclusion, tables and figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from pipeline.reporting import page
from pipeline.reporting.text import Table, number_of, read_tables
from pipeline.studies.contests import ALPHA

CAPTIONS = {
    "curve": "the objective against bytes",
    "minus_uniform": "minus one dimension of the same size",
    "reward": "reward per session,",
    "learning": "reward per session against known transitions,",
}
DECIDED = ("supported", "contradicted")  # verdicts on a claim
HIDDEN = ("cell", "peak_mib", "undecided")  # columns of the single results that the page leaves out


def section(folder: Path) -> page.Section:
    """The section of one profile of a study.

    Args:
        folder: ``studies/<study>/results/<profile>``, which `pipeline.studies.report.write` wrote.
    """
    study, profile = folder.parts[-3], folder.name
    about, tables = read_tables((folder / "table.md").read_text(encoding="utf-8"))
    body = [page.lead(page.points(conclusion(tables))), *map(page.paragraph, about)]
    for figure in sorted(folder.glob("*.svg")):
        kind, _, place = figure.stem.partition("-")
        body.append(page.image(figure, f"{study}, {CAPTIONS.get(kind, kind)} {place}".strip()))
    for table in tables:
        body += [page.titled(table.title, table.note), page.table(table.head, table.rows)]
    results = pd.read_csv(folder / "table.csv", dtype=str, keep_default_na=False)
    shown = results[[name for name in results if name not in HIDDEN]]
    single = page.plain_table([*shown], [[_short(value) for value in row] for row in shown.itertuples(index=False)])
    body.append(page.details(f"All {len(results):,} single results, with their MLflow runs and commits", single))
    return page.Section(f"{study}, {profile}", body)


def _short(value: str) -> str:
    """A number with five digits; any other text as it is."""
    try:
        return f"{float(value):.5g}" if "." in value else value
    except ValueError:
        return value


# --- conclusions


def conclusion(tables: Sequence[Table]) -> list[str]:
    """What the tests of a study show after correction and what they do not, a line for each table and data set."""
    lines = [line for table in tables for line in (*_standings(table), *_claims(table), *_agents(table))]
    if not lines:
        lines = [line for table in tables for line in _tests(table)]
    return lines or ["There is no test here: the tables describe, and show no difference."]


def _standings(table: Table) -> Iterator[str]:
    """Of the table that ranks all methods: a difference and a p-value for each data set."""
    for column, name in enumerate(table.head):
        if name.startswith("mean difference, ") and table.head[column + 1].startswith("p, "):
            dataset = name.removeprefix("mean difference, ")
            tested = [(row[0], row[column], row[column + 1]) for row in table.rows if row[column + 1]]
            yield f"{dataset}: {_said(tested, 'method')}"


def _agents(table: Table) -> Iterator[str]:
    """Of a table of agents, whose head is "minus" and then a difference and a p-value for each test."""
    if not table.head or table.head[0] != "minus":
        return
    for column in range(1, len(table.head), 2):
        tested = [(row[0], row[column], row[column + 1]) for row in table.rows if row[column + 1]]
        shown = [(name, minus.split(" ")[0]) for name, minus, p in tested if float(p.lstrip("<")) < ALPHA]
        found = ", ".join(f"{name} ({minus})" for name, minus in shown)
        yield f"{table.title}, {table.head[column]}: {f'shown for {found}' if found else 'no difference is shown'}."


def _tests(table: Table) -> Iterator[str]:
    """Of a table with a difference and a p-value in each row."""
    places = [column for column, name in enumerate(table.head) if name.endswith("minus the nearest uniform")]
    if not places or "p" not in table.head:
        return
    column, p, named = places[0], table.head.index("p"), table.head.index("arm") if "arm" in table.head else 1
    compared = [(", ".join(row[:named]), row[column], row[p]) for row in table.rows if row[column]]
    tested = [one for one in compared if one[2]]
    untested = len(compared) - len(tested)
    without = f" {number_of(untested, 'comparison')} without a test: sizes differ, or one seed." if untested else ""
    yield f"{table.title}: {_said(tested, 'setting')}{without}"


def _said(tested: Sequence[tuple[str, str, str]], kind: str) -> str:
    """Sentences on tests: a name, a difference and a corrected p-value of each, as the tables show them."""
    if not tested:
        return "No test."
    shown = [(name, minus.split(" ")[0]) for name, minus, p in tested if float(p.lstrip("<")) < ALPHA]
    shown.sort(key=lambda one: -float(one[1]))
    said = []
    for way, sign in ("better", "+"), ("worse", "-"):
        if found := [f"{name} ({minus})" for name, minus in shown if minus.startswith(sign)]:
            said.append(f"Shown to be {way} than one dimension of the same size: {'; '.join(found)}.")
    if rest := len(tested) - len(shown):
        said.append(f"No difference is shown for {number_of(rest, f'other {kind}' if shown else kind)}.")
    return " ".join(said)


def _claims(table: Table) -> Iterator[str]:
    """Of the table of published claims: those that are decided, for each data set."""
    if "tested" not in table.head:
        return
    tested = table.head.index("tested")
    found: dict[str, list[tuple[str, str]]] = {}  # data set -> verdict and what was tested
    for column, name in enumerate(table.head):
        if dataset := re.fullmatch(r"(?:verdict|claim), (.+)", name):
            found[dataset[1]] = [(row[column], row[tested]) for row in table.rows]
    if "verdict" in table.head:  # of a study on retrieval: a row for each data set and group of targets
        columns = [table.head.index(name) for name in ("dataset", "verdict", "targets")]
        for row in table.rows:
            dataset_of, verdict, group = (row[column] for column in columns)
            found.setdefault(dataset_of, []).append((verdict, f"{row[tested]} ({group})"))
    for name, claims in found.items():
        by_verdict: dict[str, list[str]] = {}
        for verdict, what in claims:
            by_verdict.setdefault(verdict, []).append(what)
        decided = [f"{kind}: {', '.join(by_verdict[kind])}" for kind in DECIDED if kind in by_verdict]
        rest = sum(len(of) for kind, of in by_verdict.items() if kind and kind not in DECIDED)
        decided += [f"not decided: {rest}"] if rest else []
        yield f"Claims, {name}: {'; '.join(decided) or 'none tested'}."
