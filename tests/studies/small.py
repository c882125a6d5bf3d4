"""A small study in a folder of its own, and its stages run in this process."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.studies.grid import STUDIES, Study
from pipeline.studies.results import Results
from pipeline.studies.run import dvc
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
ENDLESS = {"method": {"name": "full"}, "retrain": {"epochs": 10**6, "patience": None}}  # a cell that trains for hours
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


def checkout(place: Path, given: Mapping[str, Any], done: Study) -> Path:
    """A folder with the code and a study called "own", whose data are there and which has no stages but its cells."""
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, place)
    folder = written(place, given, "own")
    shutil.copytree(done.folder / "artifacts/data", folder / "artifacts/data")
    keys = folder / "artifacts/keys/quick/cells"
    keys.mkdir(parents=True)
    for name in given["method"]:
        (keys / f"tiny-fm-{name}.json").write_text("{}")
    cell = yaml.safe_load((STUDIES / "overall/dvc.yaml").read_text())["stages"]["cell-quick"]
    stages = {"cell-quick": {**cell, "cmd": cell["cmd"].replace(" overall ", " own ")}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = True\n    analytics = False\n")
    return place


def command(place: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    """A command that runs the study of a `checkout`, and its environment. DVC runs only the cells: it has no more."""
    program = place / "dvc"
    program.write_text(f'#!/bin/sh\ncase "$*" in *cell-*) exec {dvc()} "$@";; esac\n')
    program.chmod(0o755)
    script = (
        "import sys; from pipeline.studies import run; from stages import study; "
        f"run.dvc = lambda: {str(program)!r}; sys.argv = ['study', 'run', 'own', *{list(words)!r}]; study.main()"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in ("DVC_ROOT", "DVC_STAGE")}
    return [sys.executable, "-c", script], {**inherited, "PYTHONPATH": str(ROOT), "PIPELINE_TRACKING": "journal"}


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
