"""A retraining with divided tables writes ordinary models, and what cannot be divided is refused in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pipeline.scoring.export import export
from tests.project import Project

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
SHARDED: dict[str, Any] = {"retrain__tables": "torchrec", "retrain__adagrad": 0.05, "retrain__devices": 2}


def test_a_model_with_divided_tables_is_retrained_evaluated_and_exported(
    finished: Project, tmp_path: Path, forks: None
) -> None:
    if importlib.util.find_spec("torchrec") is None:
        pytest.skip("TorchRec is no dependency")
    project = finished.copy(tmp_path).give(retrain__seeds=[0], **SHARDED).run("retrain", "evaluate")
    model = Path("artifacts/models/searched/seed-0")
    for name in ("model.json", "allocation.json"):
        ours, theirs = (json_without(p, model / name) for p in (project, finished))
        assert ours == theirs
    history = project.read("models/searched/seed-0/history.json")
    assert len(history) == 2 and history[-1]["auc"] > 0.5
    ours, theirs = (p.read("report.json")["allocations"]["searched"]["bytes"] for p in (project, finished))
    assert ours == theirs
    assert "bytes of weights" in export(project.folder / model, tmp_path / "served", "served")


def json_without(project: Project, path: Path) -> Any:
    """A file of a model, without what depends on its weights."""
    record = project.read(str(path.relative_to("artifacts")))
    return {key: value for key, value in record.items() if key != "weights"}


def test_one_process_has_nothing_to_divide(finished: Project, tmp_path: Path) -> None:
    message = finished.copy(tmp_path).give(**SHARDED | {"retrain__devices": 1}).error("retrain")
    assert message == (
        "params.yaml: retrain.tables is torchrec, which needs several processes; set retrain.devices to 2 or more, or "
        "set retrain.tables to local"
    )


def test_other_tables_than_plain_ones_are_refused(finished: Project, tmp_path: Path, forks: None) -> None:
    project = finished.copy(tmp_path)
    file = project.folder / "artifacts/allocation.json"
    file.write_text(file.read_text().replace('"method": "autodim"', '"method": "autodim_int8"'))
    message = project.give(**SHARDED).error("retrain")
    assert "retrain.tables is torchrec, which holds plain mixed dimensions, and method autodim_int8 builds" in message
