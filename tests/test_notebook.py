"""The notebook runs on what a run of the pipeline left in MLflow, and shows what that run reported."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.project import ROOT, Project

NOTEBOOK = ROOT / "notebooks/results.ipynb"


def test_the_notebook_shows_what_the_run_reported(recorded: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbclient
    import nbformat

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(recorded.folder)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    configurations, controls, compared, fields = [table(data["text/html"]) for data in shown if "text/html" in data]
    assert sum("image/png" in data for data in shown) == 2

    report, metrics = recorded.read("report.json"), recorded.read("metrics.json")
    assert configurations[-1][:3] == ["synthetic", "deepfm", "autodim"]
    for figures in metrics.values():
        assert {f"{figures['auc']:.4f}", f"{figures['bytes']:,}"} <= set(configurations[-1])
    for name, entry in report["allocations"].items():
        auc = entry["auc"]
        expected = [name, f"{auc['mean']:.4f}", f"{auc['sd']:.4f}", f"{entry['logloss']['mean']:.4f}"]
        assert [*expected, f"{entry['bytes']:,}", f"{entry['ratio']:.1%}"] in controls
    for entry in report["comparisons"]:
        values = [entry["auc_difference"], *entry["interval"]]
        row = [entry["against"], *(f"{value:+.4f}" for value in values), f"{entry['bytes_ratio']:.2f}"]
        assert row in compared
    searched, full = report["allocations"]["searched"], report["allocations"]["full"]
    ranks = {row["feature"]: row["rank"] for row in report["planted"]}
    cardinality = {field["name"]: field["cardinality"] for field in recorded.read("encoded/schema.json")["fields"]}
    for name, dim in searched["dims"].items():
        sizes = [cardinality[name], searched["bytes_per_field"][name], full["bytes_per_field"][name]]
        rank = str(ranks[name]) if name in ranks else ""
        assert [name, str(dim), rank, *(f"{size:,}" for size in sizes)] in fields


def table(html: str) -> list[list[str]]:
    """The rows of a table, each a list of its cells' text."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>\s*(.*?)\s*</t[hd]>", row, re.DOTALL) for row in rows]


@pytest.mark.parametrize("path", sorted(NOTEBOOK.parent.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_holds_no_results_and_defines_nothing(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        code = re.sub(r"(?m)^%.*$", "", "".join(cell["source"]))
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, defined)]
