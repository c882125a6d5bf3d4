"""The runs table of MLflow as this project wants it: a row for each configuration, and the columns that answer.

MLflow keeps a shared view of the table as a tag of the experiment, and a link names the view. So the columns can be
chosen for everybody who opens the link.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from pipeline.tracking.place import EXPERIMENT, storing
from pipeline.tracking.store import Store

VIEW = "results"
ONLY_RESULTS = "tags.`pipeline.configuration` IS NOT NULL AND tags.job IS NULL"  # no stages, trials or cells
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


def _page(experiment_id: str, **options: str) -> str:
    return f"/#/experiments/{experiment_id}/runs?{urlencode({'workflowType': 'machine_learning', **options})}"
