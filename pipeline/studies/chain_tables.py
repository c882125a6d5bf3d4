"""The tables and figures of agents on two pages, and of agents who play with smaller item tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.chain import report
from pipeline.metrics.difference import SEEDS_ALONE, difference
from pipeline.reporting.text import Table, mean_sd, with_interval
from pipeline.studies.chained import METRICS, PLAYER
from pipeline.studies.comparisons import budget_text
from pipeline.studies.frames import Result
from pipeline.studies.grid import Study

CHAIN = "chain"  # the key of the grid that says what agents a cell compares


def is_chain(study: Study) -> bool:
    """Whether the cells of a study are comparisons of agents, so that these are its tables."""
    return CHAIN in study.grid


def frames(result: Result) -> report.Frames:
    """What a cell has measured."""
    found = result["sessions"]
    bounds = pd.DataFrame(found["bounds"], columns=["world", "seed", "policy", "reward"])
    return report.Frames(pd.DataFrame(found["rows"]), pd.DataFrame(found["qualities"]), bounds)


def tables(results: Sequence[Result]) -> list[Table]:
    """The tables of all cells; titles begin with the name of the cell."""
    made = []
    for result in results:
        for table in report.tables(frames(result)):
            made.append(Table(f"{_name(result)}, {table.title}", table.head, table.rows, table.note))
    return made


def figures(results: Sequence[Result]) -> dict[str, partial[Figure]]:
    """What draws the figures of all cells, by the name of the file."""
    return {
        f"{name}-{_name(result)}": draw for result in results for name, draw in report.drawings(frames(result)).items()
    }


def _name(result: Result) -> str:
    return str(result["keys"][CHAIN])


def by_bytes(study: Study, results: Sequence[Result]) -> list[Table]:
    """What agents earn with smaller item tables: a row for each cell and budget, the largest tables first, and the
    difference to the full tables, paired by seed. Empty for a study whose agents do not play with tables."""
    played = [(result, row) for result in results for row in result["rows"] if "item_bytes" in row]
    made = []
    for dataset in dict.fromkeys(result["keys"]["dataset"] for result, _ in played):
        arms: dict[str, list[Mapping[str, Any]]] = {}
        for result, row in played:
            if result["keys"]["dataset"] == dataset:
                place = [value for key, value in result["keys"].items() if key != "dataset"]
                place += [row["arm"]] if row["arm"] not in ("full", "searched") else []
                place += [] if row["budget"] is None else [budget_text(row["budget"])]
                arms.setdefault(", ".join(place), []).append(row)
        whole = next((rows for rows in arms.values() if rows[0]["arm"] == "full"), None)
        objective = next(iter(results[0]["metrics"]))
        lines = []
        for name, rows in sorted(arms.items(), key=lambda item: -float(np.mean([row["bytes"] for row in item[1]]))):
            line = [name, f"{np.mean([row['bytes'] for row in rows]):,.0f}", _item_bytes(rows)]
            line.append(mean_sd([row["metrics"][objective] for row in rows]))
            for metric in (metric for metric in METRICS if metric in rows[0]["metrics"]):
                values = [row["metrics"][metric] for row in rows]
                line += [mean_sd(values, report.DIGITS), _minus(rows, whole, metric)]
            lines.append(line)
        titles = [title for metric, title in METRICS.items() if metric in played[0][1]["metrics"]]
        head = ["tables", "bytes of all tables", "of the item table", results[0]["metrics"][objective]]
        head += [text for title in titles for text in (title, "minus full")]
        note = "95% intervals cover seeds: trainings, logs, agents and the luck of sessions. They are not corrected."
        made.append(Table(f"{dataset}: what {PLAYER} earns with smaller item tables", head, lines, note))
    return made


def _item_bytes(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [row["item_bytes"] for row in rows]
    return "" if None in known else f"{np.mean(known):,.0f}"


def _minus(rows: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]] | None, metric: str) -> str:
    if whole is None or rows is whole:
        return ""
    ours, theirs = ({row["seed"]: row["metrics"][metric] for row in some} for some in (rows, whole))
    seeds = [seed for seed in ours if seed in theirs]
    found = difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return with_interval(found, report.DIGITS).replace(f", {SEEDS_ALONE}", "")
