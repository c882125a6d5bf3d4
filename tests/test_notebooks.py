"""The notebooks run on what the pipeline and a study left in MLflow, and show what these reported."""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import yaml

from pipeline.studies.grid import Study
from pipeline.tracking.place import EXPERIMENT
from pipeline.tracking.sync import Inbox
from pipeline.workflow.outputs import read_json
from stages import study as stage
from tests.project import ROOT, Project

NOTEBOOKS = ROOT / "notebooks"
SIZES = ("bytes", "share of full")


def shown(name: str, folder: Path) -> list[dict[str, str]]:
    """What the cells of a notebook show when it runs in a folder: text by its type."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]


def table(html: str) -> list[list[str]]:
    """The rows of a table, each a list of its cells' text."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>\s*(.*?)\s*</t[hd]>", row, re.DOTALL) for row in rows]


def test_the_notebook_of_results_shows_what_the_run_reported(
    recorded: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = shown("results.ipynb", recorded.folder)
    configurations, controls, compared, fields = [table(one["text/html"]) for one in data if "text/html" in one]
    assert sum("image/png" in one for one in data) == 2

    report, metrics = recorded.read("report.json"), recorded.read("metrics.json")
    assert configurations[-1][:3] == ["synthetic", "deepfm", "autodim"]
    for figures in metrics.values():
        assert {f"{figures['auc']:.4f}", f"{figures['bytes']:,}"} <= set(configurations[-1])
    assert controls[0][1:] == ["mean AUC", "mean logloss", "mean calibration error", "s.d. of AUC", *SIZES]
    for name, entry in report["allocations"].items():
        of_metrics = entry["metrics"]
        means = [f"{of_metrics[metric]['mean']:.4f}" for metric in ("auc", "logloss", "calibration_error")]
        sizes = [f"{entry['bytes']:,}", f"{entry['ratio']:.1%}"]
        assert [name, *means, f"{of_metrics['auc']['sd']:.4f}", *sizes] in controls
    for entry in report["comparisons"]:
        values = [f"{value:+.4f}" for value in (entry["mean"], *entry["interval"])]
        assert [entry["against"], *values, entry["covers"], f"{entry['bytes_ratio']:.2f}"] in compared
    searched, full = report["allocations"]["searched"], report["allocations"]["full"]
    ranks = {row["feature"]: row["rank"] for row in report["planted"]}
    cardinality = {field["name"]: field["cardinality"] for field in recorded.read("encoded/schema.json")["fields"]}
    for name, dim in searched["dims"].items():
        sizes = [cardinality[name], searched["bytes_per_field"][name], full["bytes_per_field"][name]]
        rank = str(ranks[name]) if name in ranks else ""
        assert [name, str(dim), rank, *(f"{size:,}" for size in sizes)] in fields


@pytest.fixture
def fresh(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which nothing was run yet."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(migrated, tmp_path / "mlflow.db")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    for folder in ("notebooks/kept", "studies/budget/results/methods_1m"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def test_before_the_first_run_the_notebook_of_results_shows_the_kept_one(fresh: Path) -> None:
    data = shown("results.ipynb", fresh)
    controls, _, fields = [table(one["text/html"]) for one in data if "text/html" in one]
    assert sum("image/png" in one for one in data) == 2
    kept = read_json(NOTEBOOKS / "kept/report.json")
    assert [row[0] for row in controls if row[0] in kept["allocations"]] == list(kept["allocations"])
    assert {row[0] for row in fields} >= set(kept["cardinality"])


def test_before_the_first_study_the_notebook_of_studies_shows_the_kept_tables(fresh: Path) -> None:
    data = shown("studies.ipynb", fresh)
    table_of = (ROOT / "studies/budget/results/methods_1m/table.md").read_text()
    assert [one["text/markdown"] for one in data if "text/markdown" in one] == [table_of]
    assert sum("image/png" in one for one in data) >= 1


@pytest.fixture
def budget(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of one cell with two budgets, run and reported in its folder, and brought to MLflow."""
    shutil.copy(migrated, tmp_path / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PIPELINE_TRACKING", "journal")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folder = tmp_path / "studies/budget"
    folder.mkdir(parents=True)
    values: dict[str, Any] = {
        "quick": {"dataset": ["tiny"], "method": ["autodim"], "seeds": [0, 1]},
        "method": {"autodim": {"arms": ["searched", "uniform"], "budgets": [0.3, 1.0]}},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    training = {"epochs": 1, "batch_size": 100}
    path = str(ROOT / "data")  # planted data are not read from it, but it has to be there
    data = {"dataset": {"name": "synthetic", "path": path, "options": {"rows": 600}}}
    params = {**data, "search": training, "retrain": training}
    (folder.parent / "datasets.yaml").write_text(yaml.safe_dump({"quick": {"tiny": {"params": params}}}))
    study = Study("budget", "quick", folder)
    monkeypatch.chdir(folder)
    stage.data(study, "tiny")
    stage.cell(study, {"dataset": "tiny", "method": "autodim"})
    Inbox(tmp_path, EXPERIMENT).bring_in()
    stage.report(study)
    return study


@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")
def test_the_notebook_of_studies_shows_cells_tables_and_curves(budget: Study) -> None:
    data = shown("studies.ipynb", budget.folder.parents[1])
    (cells,) = [table(one["text/html"]) for one in data if "text/html" in one]
    result = read_json(budget.folder / "artifacts/cells/quick/tiny-autodim.json")
    means = {}
    for arm in ("searched", "uniform"):
        for size in (0.3, 1.0):
            aucs = [row["metrics"]["auc"] for row in result["rows"] if (row["arm"], row["budget"]) == (arm, size)]
            means[f"{arm}-{size}"] = f"{sum(aucs) / len(aucs):.4f}"
    names = [name for name in cells[0] if name in means]
    assert len(names) == 4 and cells[-1] == ["budget", "quick", "tiny-autodim", *(means[name] for name in names)]
    (text,) = [one["text/markdown"] for one in data if "text/markdown" in one]
    assert text == (budget.folder / "results/quick/table.md").read_text()
    assert sum("image/png" in one for one in data) == 1


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_holds_no_results_and_defines_nothing(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        code = re.sub(r"(?m)^%.*$", "", "".join(cell["source"]))
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, defined)]
