"""How the stage `evaluate` reports models as they are served."""

from pathlib import Path

import pytest

from pipeline.serving import latency
from tests.project import Project
from tests.stages.checks import check_served


def test_a_method_without_a_form_for_serving_is_reported_without_one(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = finished.copy(tmp_path)
    dims = finished.read("allocation.json")["dims"]
    forms = latency.forms
    monkeypatch.setattr(
        "pipeline.reporting.evaluate.forms_of", lambda model: {} if model.embedding.dims == dims else forms(model)
    )
    project.run("evaluate")
    report, before = project.read("report.json")["allocations"], finished.read("report.json")["allocations"]
    searched = report["searched"]
    assert searched == before["searched"] | {"served": {}}
    for name in ("full", "uniform", "random"):
        check_served(report[name], before["full"]["bytes"])
    shown = (tmp_path / "artifacts/report.md").read_text()
    size = f"| {searched['bytes']:,} | {searched['ratio']:.1%} | {searched['model_bytes']:,} |"
    assert f"{size} – | – |" in shown
    assert "| searched | – | – | – | – | – |" in shown
    metrics = project.read("metrics.json")
    of_searched = {"auc", "auc_sd", "logloss", "calibration_error", "bytes", "of_full"}
    assert set(metrics["searched"]) == of_searched and "int8_auc" in metrics["full"]
