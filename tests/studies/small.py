"""A small study in a folder of its own, and its stages run in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.studies.grid import Study
from pipeline.studies.results import Results
from stages import study as stage
from tests.project import ROOT

SMALL: dict[str, Any] = {
    "quick": {"dataset": ["tiny"], "backbone": ["fm"], "method": ["autodim", "full"], "seeds": [0, 1]},
    "backbone": {"fm": {"params": {"backbone": {"name": "fm"}}}},
    "method": {
        "autodim": {"arms": ["searched", "uniform", "random"]},
        "full": {"params": {"method": {"name": "full"}}, "arms": ["full"]},
    },
}
TRAINING = {"epochs": 1, "batch_size": 100}
TINY = {  # planted data are not read from the path, but it has to be there
    "dataset": {"name": "synthetic", "path": str(ROOT / "data"), "options": {"rows": 600}},
    "search": TRAINING,
    "retrain": TRAINING,
}
QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),  # Lightning's
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def written(place: Path, given: Mapping[str, Any], name: str = "overall") -> Path:
    """The folder of a study of this name in a repository."""
    folder = place / "studies" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(given), sort_keys=False))
    (folder.parent / "datasets.yaml").write_text(yaml.safe_dump({"quick": {"tiny": {"params": TINY}}}))
    return folder


def one_method(name: str, quick: Mapping[str, Any] = {}, **entry: Any) -> dict[str, Any]:
    """`SMALL` with one method and one seed; ``entry`` says what the method stands for."""
    return {**SMALL, "quick": {**SMALL["quick"], "method": [name], "seeds": [0], **quick}, "method": {name: entry}}


def repository(study: Study) -> Path:
    """The folder that a small study's repository would have."""
    return study.folder.parents[1]


def changed(study: Study, given: Mapping[str, Any]) -> Study:
    """The study of the same folder with another definition."""
    return Study(study.name, "quick", written(repository(study), given, study.name))


def run_cell(study: Study, **keys: str) -> dict[str, Any]:
    """Run the stage of one cell, and before it that of its data; the result. Without keys, it is the first cell."""
    os.chdir(study.folder)
    place = keys or {key: values[0] for key, values in study.grid.items()}
    if not Results(study).data(place["dataset"]).exists():
        stage.data(study, place["dataset"])
    stage.cell(study, place)
    result: dict[str, Any] = json.loads(Results(study).own(study.cell(place)).read_text())
    return result


def figures(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result without the times."""
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in result["rows"]]
