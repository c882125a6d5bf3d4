"""What DVC plots: the CSV files hold what the stages found, and the templates ask for columns that are there."""

import csv
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from dvc.cli import main as dvc

from tests.project import ROOT, Project

PLOTS = {
    name: plot for entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"] for name, plot in entry.items()
}
OUTS = {out for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values() for out in stage["outs"]}


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_finds_its_columns(finished: Project, name: str) -> None:
    plot = PLOTS[name]
    ((path, y),) = plot["y"].items()
    assert path in OUTS
    with (finished.folder / path).open() as file:
        columns = set(next(csv.reader(file)))
    assert not columns & {"field", "filename", "rev"}  # which dvc-render writes over
    template = json.loads((ROOT / f".dvc/plots/{plot['template']}.json").read_text())
    asked = set(fields(template))
    assert {"<DVC_METRIC_X>", "<DVC_METRIC_Y>", "rev"} <= asked
    assert {plot["x"], y, *asked} - {"rev", "<DVC_METRIC_X>", "<DVC_METRIC_Y>"} <= columns
    by_revision = template.get("spec", template)["encoding"]
    assert by_revision["color"] == "<DVC_METRIC_COLOR>" or by_revision["strokeDash"]["field"] == "rev"


def fields(template: Any) -> Iterator[str]:
    """Every column that a template names."""
    if isinstance(template, dict):
        if isinstance(template.get("field"), str):
            yield template["field"]
        for value in template.values():
            yield from fields(value)
    elif isinstance(template, list):
        for value in template:
            yield from fields(value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own
def test_dvc_fills_the_templates_with_the_rows_of_the_files(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    with project.inside() as patch:
        patch.setenv("DVC_NO_ANALYTICS", "1")
        assert dvc(["init", "--no-scm", "--quiet"]) == 0
        shutil.copytree(ROOT / ".dvc/plots", ".dvc/plots")
        for name in ("config", "plots.html"):
            shutil.copy(ROOT / f".dvc/{name}", f".dvc/{name}")
        assert dvc(["config", "core.no_scm", "true"]) == 0
        assert dvc(["plots", "show", "--out", "shown"]) == 0
    logging.disable(logging.NOTSET)  # `--quiet` disables the logs of the whole process
    page = (tmp_path / "shown/index.html").read_text()
    assert not re.findall(r"<(?:script|link)\b[^>]*(?:src|href)=", page)  # nothing is loaded from the network
    assert page.count("<script>") == 3  # vega, vega-lite and vega-embed
    specifications = re.findall(r"var spec = (.*?);", page)
    assert len(specifications) == len(PLOTS)
    for plot, specification in zip(PLOTS.values(), specifications, strict=True):
        ((path, _),) = plot["y"].items()
        filled = json.loads(specification)
        assert "<DVC_METRIC" not in json.dumps(filled)
        assert filled["title"]["text"] == plot["title"]
        rows = pd.DataFrame(filled["data"]["values"])
        whole = pd.read_csv(project.folder / path, dtype=str, keep_default_na=False)
        assert rows[list(whole.columns)].values.tolist() == whole.values.tolist()


def test_curves_are_the_histories_of_the_search_and_of_every_model(finished: Project) -> None:
    curves = pd.read_csv(finished.folder / "artifacts/curves.csv")
    found = {key: list(zip(c.step, c.objective, strict=True)) for key, c in curves.groupby(["allocation", "seed"])}
    expected = {("supernet", 0): finished.read("search/scores.json")["validation"]}
    for path in (finished.folder / "artifacts/models").rglob("history.json"):
        expected[path.parts[-3], int(path.parts[-2].removeprefix("seed-"))] = json.loads(path.read_text())
    assert len(expected) == 9
    assert found == {key: [(e["step"], round(e["auc"], 6)) for e in history] for key, history in expected.items()}


def test_allocations_are_the_points_of_the_report(finished: Project) -> None:
    points = pd.read_csv(finished.folder / "artifacts/allocations.csv")
    report = finished.read("report.json")
    for name, entry in report["allocations"].items():
        of_name = points[points.allocation == name]
        assert of_name.seed.tolist() == report["seeds"]
        assert of_name.objective.tolist() == [round(value, 6) for value in entry["metrics"]["auc"]["values"]]
        assert of_name.bytes.tolist() == entry.get("bytes_values", [entry["bytes"]] * len(report["seeds"]))


def test_the_plotted_trajectory_is_thin_and_ends_where_the_search_ended(finished: Project) -> None:
    plotted = pd.read_csv(finished.folder / "artifacts/trajectory.csv")
    whole = pd.read_parquet(finished.folder / "artifacts/trajectory.parquet")
    assert plotted.step.nunique() <= 200
    last = whole[whole.step == whole.step.max()]
    ends = plotted[plotted.step == plotted.step.max()]
    assert (
        ends[["step", "feature", "dimension"]].values.tolist()
        == last[["step", "feature", "candidate_dim"]].values.tolist()
    )
    assert ends.probability.tolist() == pytest.approx(last.probability.tolist(), abs=1e-4)
