"""The pages of MLflow as this project wants them.

The runs table has a row for each configuration, and the columns that answer. The charts of a search have one chart for
each field. MLflow keeps a shared view of a page as a tag of the experiment, and a link names the view. So columns and
charts can be chosen for everybody who opens the link.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pipeline.tracking.place import EXPERIMENT, storing
from pipeline.tracking.store import Store

VIEW, SEARCH = "results", "search"
ONLY_RESULTS = "tags.`pipeline.configuration` IS NOT NULL AND tags.job IS NULL"  # no stages, trials or cells
CANDIDATE = re.compile(r"p/(.+)/\d+")  # the metric of the probability of a candidate of a field
CHARTS = 60  # more make the page slow
FIRST_COLUMN = {"attributes.`Run Name`": 270}  # MLflow always shows it


def results_page(root: Path, columns: Mapping[str, int], experiment: str = EXPERIMENT) -> str:
    """Save the view. Returns its page, to be put after the address of the server.

    Args:
        root: the repository.
        columns: width in pixels of each column, in order; a column is named e.g. ``tags.`verdict```.
        experiment: name of the experiment in MLflow.
    Raises:
        StoreError: if the store does not answer.
    """
    widths = {**FIRST_COLUMN, **columns}
    state = {
        "searchFilter": ONLY_RESULTS,
        "selectedColumns": list(columns),
        "columnOrder": list(widths),
        "columnWidths": widths,
    }
    with storing(root):
        number = Store(root, experiment).share_view(VIEW, state)
    return _page(number, viewStateShareKey=VIEW)


def search_page(root: Path, objective: str, experiment: str = EXPERIMENT) -> str | None:
    """Save a view of the newest search: a chart for each field, with the probability of every candidate over time.

    Args:
        root: the repository.
        objective: of the task.
        experiment: name of the experiment in MLflow.

    Returns:
        Its page, to be put after the address of the server; None if there is no such search.

    Raises:
        StoreError: if the store does not answer.
    """
    with storing(root):
        store = Store(root, experiment)
        newest = store.newest("search")
        candidates: dict[str, list[str]] = {}
        for metric in newest[1] if newest else []:
            if found := CANDIDATE.fullmatch(metric):
                candidates.setdefault(found[1], []).append(metric)
        if newest is None or not candidates:
            return None
        fields = [sorted(metrics, key=lambda name: int(name.rpartition("/")[2])) for metrics in candidates.values()]
        state = {
            "searchFilter": f"attributes.run_id = '{newest[0]}'",
            "orderByKey": f"metrics.`val/{objective}`",  # in the order of time, MLflow would fold the run
            "orderByAsc": False,
            "compareRunCharts": [_chart(number, metrics) for number, metrics in enumerate(fields[:CHARTS])],
            "compareRunSections": [{"uuid": "fields", "name": "Candidates of each field", "display": True}],
            "isAccordionReordered": True,
        }
        number = store.share_view(SEARCH, state)
    return _page(number, compareRunsMode="CHART", viewStateShareKey=SEARCH)


def _chart(number: int, metrics: list[str]) -> dict[str, Any]:
    """Lines of some metrics in one chart, as MLflow stores it."""
    return {
        "uuid": f"field-{number}",
        "type": "LINE",
        "metricSectionId": "fields",
        "metricKey": metrics[0],
        "selectedMetricKeys": metrics,
        "runsCountToCompare": 10,
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "range": {"yMin": 0, "yMax": 1},
        "lineSmoothness": 0,
        "deleted": False,
        "isGenerated": False,
    }


def _page(experiment_id: str, **options: str) -> str:
    return f"/#/experiments/{experiment_id}/runs?{urlencode({'workflowType': 'machine_learning', **options})}"
