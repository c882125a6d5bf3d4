"""The results of a study as data frames, with the MLflow ids of their runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.metrics.difference import decoded
from pipeline.studies.grid import Study
from pipeline.tracking.place import StoreError
from pipeline.tracking.sync import run_ids
from pipeline.workflow.places import root
from pipeline.workflow.validation import repeated

Result = Mapping[str, Any]  # the result of one cell, see `pipeline.studies.cell.run`

COLUMNS = [  # of a trained model, in addition to its metrics
    *("cell", "budget", "arm", "seed", "bytes", "of_full", "model_bytes", "table_params", "training_bytes", "epochs"),
    *("seconds", "search_seconds", "setting", "test_rows", "test_unit"),
    *("dims", "run", "mlflow_run", "commit", "sketch"),
]
SEARCH_COLUMNS = [  # of a search
    *("cell", "seed", "seconds", "peak_mib", "dims", "bytes", "undecided", "training_bytes", "run", "mlflow_run"),
    "commit",
]


@dataclass(frozen=True)
class Frames:
    """The measurements of a study's cells.

    Args:
        rows: one row for each trained model, with a column for each key of the grid, each metric and each of
            `COLUMNS`; ``dims`` is JSON, ``sketch`` is an array or None.
        searches: one row for each search, with the keys of the grid and `SEARCH_COLUMNS`.
        metrics: name of each metric -> its title.
        objective: name of the metric that judges the models; higher is better.
    """

    rows: pd.DataFrame
    searches: pd.DataFrame
    metrics: Mapping[str, str]
    objective: str

    @property
    def title(self) -> str:
        """Title of the objective in tables and on axes."""
        return self.metrics[self.objective]

    @property
    def shown(self) -> list[str]:
        """Names of the metrics that tables show, at most two; the objective comes first."""
        return list(self.metrics)[:2]

    @property
    def details(self) -> pd.DataFrame:
        """All single results: of the trained models, or of the searches if no model was trained."""
        return self.rows.drop(columns="sketch") if len(self.rows) else self.searches

    @classmethod
    def of(cls, study: Study, results: Sequence[Result]) -> Frames:
        """Make the frames of one or more results.

        Args:
            study: the study of the results.
            results: one for each cell.

        Raises:
            ValueError: if the cells have different objectives, or two columns would have the same name.
        """
        objectives = {result["objective"]: _name(result) for result in results}
        if len(objectives) > 1:
            said = ", ".join(f"{objective} for {cell}" for objective, cell in objectives.items())
            raise ValueError(f"study {study.name}: a report compares one objective, but its cells have {said}")
        (objective,) = objectives
        metrics = {name: title for result in results for name, title in result["metrics"].items()}
        metrics = {objective: metrics[objective], **metrics}
        columns = [*study.grid, *metrics, f"val_{objective}", *COLUMNS]
        for names in (columns, [*study.grid, *SEARCH_COLUMNS]):
            if twice := repeated(names):
                raise ValueError(
                    f"study {study.name}: the tables have a column {twice[0]} of their own; rename the grid's key or "
                    "the metric of this name"
                )
        ids = _mlflow_ids(results)
        rows = [line for result in results for line in _rows(result, objective, ids)]
        searches = [line for result in results for line in _searches(result, ids)]
        order = [*study.grid, *COLUMNS[:4], *metrics, f"val_{objective}", *COLUMNS[4:]]
        search_order = [*study.grid, *SEARCH_COLUMNS]
        return cls(pd.DataFrame(rows, columns=order), pd.DataFrame(searches, columns=search_order), metrics, objective)


def _rows(result: Result, objective: str, ids: Mapping[tuple[str, str], str]) -> list[dict[str, Any]]:
    return [
        {
            **row,
            **row["metrics"],
            **_place(result, row, ids),
            f"val_{objective}": row["validation"],
            "test_rows": row.get("rows"),
            "test_unit": result.get("unit", "rows"),
            "sketch": decoded(row["sketch"]) if row.get("sketch") else None,
        }
        for row in result["rows"]
    ]


def _searches(result: Result, ids: Mapping[tuple[str, str], str]) -> list[dict[str, Any]]:
    return [{**search, **_place(result, search, ids)} for search in result["searches"]]


def _place(result: Result, line: Mapping[str, Any], ids: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    return {
        **result["keys"],
        "cell": _name(result),
        "dims": json.dumps(line["dims"]),
        "mlflow_run": ids.get((result["key"], line["run"]), ""),
        "commit": result["commit"],
    }


def _name(result: Result) -> str:
    return "-".join(result["keys"].values())


def _mlflow_ids(results: Sequence[Result]) -> dict[tuple[str, str], str]:
    """MLflow ids of the runs that are in the store, by the key of the cell and the name of the run."""
    try:
        return run_ids(root(), "study", [result["key"] for result in results])
    except StoreError as error:
        print(f"report: warning: no MLflow ids of the runs: {error}")
        return {}
