"""The six stages in one process, on small data: the defaults, all methods, all backbones, all forms of the search."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.experiment.experiment import suitable
from pipeline.tracking.journal import Points, Reader
from pipeline.workflow.plug import names
from stages import evaluate
from tests.project import STAGES, Project
from tests.stages.checks import ALLOCATIONS, check_report

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
MADE = [("autodim", backbone) for backbone in suitable(interactions=False)]
MADE += [(method, "deepfm") for method in names("methods") if method != "autodim"]
FIELDS = ["user", "item", "price", "tags"]


def test_planted_data_end_to_end_with_the_defaults(finished: Project) -> None:
    report = check_report(finished, dataset="synthetic", backbone="deepfm", method="autodim", seeds=[0, 1])
    assert 0.5 < report["best_possible"] < 1
    assert report["rank_correlation"] is None or -1 <= report["rank_correlation"] <= 1
    full = report["allocations"]["full"]
    rows = {field["name"]: field["cardinality"] for field in finished.read("encoded/schema.json")["fields"]}
    assert full["bytes"] == 4 * 8 * sum(rows.values()) and set(full["dims"].values()) == {8}
    assert full["served"]["int8"]["bytes"] == (8 + 2) * sum(rows.values())  # a byte a number, two for a row's scale
    searched = report["allocations"]["searched"]
    assert searched["dims"] == finished.read("allocation.json")["dims"]
    spent = sum((d + 2) * rows[name] + (d * 8 * 4 if d < 8 else 0) for name, d in searched["dims"].items())
    assert searched["served"]["int8"]["bytes"] == spent
    assert abs(report["allocations"]["random"]["bytes"] / searched["bytes"] - 1) <= 0.02
    means = {name: metric["mean"] for name, metric in searched["metrics"].items()}
    assert finished.read("metrics.json")["searched"] == {
        **means,
        "auc_sd": searched["metrics"]["auc"]["sd"],
        "bytes": searched["bytes"],
        "of_full": searched["ratio"],
        "int8_auc": searched["served"]["int8"]["metrics"]["auc"]["mean"],
        "int8_bytes": searched["served"]["int8"]["bytes"],
    }


def test_the_last_step_of_the_trajectory_is_what_the_search_found(finished: Project) -> None:
    trajectory = pd.read_parquet(finished.folder / "artifacts/trajectory.parquet")
    last = trajectory[trajectory.step == trajectory.step.max()]
    for name, found in finished.read("search/scores.json")["features"].items():
        of_field = last[last.feature == name].sort_values("candidate_dim")
        assert of_field.candidate_dim.tolist() == found["candidates"]
        np.testing.assert_allclose(of_field.probability, np.exp(found["log_probability"]), rtol=1e-4)


def test_a_model_that_was_saved_right_before_a_kill_has_a_run_that_ends(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    shutil.rmtree(tmp_path / "artifacts/models")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("stages.retrain._end", killed)
        project.run("retrain")
    project.run("retrain")
    last, tagged = dict[str, str](), set()
    for record in Reader(tmp_path / "artifacts/runs/retrain.jsonl"):
        if not isinstance(record, Points) and record["k"] == "end":
            last[record["run"]] = record["status"]
        elif not isinstance(record, Points) and record["k"] == "tags" and "model" in record["tags"]:
            tagged.add(record["run"])
    assert len(last) == 8 and set(last.values()) == {"FINISHED"} and tagged == last.keys()


def test_a_retraining_that_is_killed_while_it_removes_its_checkpoints_is_done_again_whole(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path)
    shutil.rmtree(tmp_path / "artifacts/models")

    def half(path: Path, **_: Any) -> None:
        for file in sorted(file for file in path.rglob("*") if file.is_file())[:2]:
            file.unlink()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", half)
        project.run("retrain")
    project.run("retrain")
    models, wanted = (
        {name: of.files()[name] for name in of.files() if "/models/" in name} for of in (project, finished)
    )
    assert len(wanted) > 16 and models == wanted


@pytest.mark.parametrize(("method", "backbone"), MADE)
def test_a_table_end_to_end_with_every_method_and_every_backbone(
    table: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, backbone: str
) -> None:
    """The name alone selects another method. There is no random control of a size that no dimensions have."""
    monkeypatch.setattr(evaluate, "_draw", lambda *_: [])  # half the time, and drawn by other tests
    project = table.copy(tmp_path).give(backbone__name=backbone, method__name=method)
    project.run(*STAGES[2:])
    controls = list(project.read("controls.json"))
    assert {"full", "uniform"} <= set(controls) <= set(ALLOCATIONS)
    report = check_report(project, controls, dataset="table", backbone=backbone, method=method)
    assert sorted(report["allocations"]["searched"]["dims"]) == sorted(FIELDS)
    assert "best_possible" not in report


VARIANTS: dict[str, dict[str, Any]] = {
    "single level": {"search__architecture": {"level": "single", "lr": 0.02}},
    "second order": {"search__architecture": {"order": 2, "lr": 0.02, "every": 2}},
    "padding": {"method__options__autodim": {"unification": "padding"}},
    "separate": {"method__options__autodim": {"sharing": "separate"}},
    "separate and padding": {"method__options__autodim": {"sharing": "separate", "unification": "padding"}},
    "shared maps, no gain": {"method__options__autodim": {"transform": "global", "gain": "none"}},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_form_of_the_search_decides_on_every_field(
    table: Project, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = {"method__options__autodim": {}, "search__architecture": {"lr": 0.02, "every": 1}}
    project = table.copy(tmp_path).give(**{**plain, **changes}).run("search", "derive")
    scores = project.read("search/scores.json")["features"]
    for found in scores.values():
        p = np.exp(found["log_probability"])
        assert p.sum() == pytest.approx(1, abs=1e-5) and p.max() - p.min() > 1e-4  # the architecture was trained
    best = {name: s["candidates"][int(np.argmax(s["log_probability"]))] for name, s in scores.items()}
    assert project.read("allocation.json")["dims"] == best


def test_candidates_by_field_and_a_dropped_field_all_the_way(table: Project, tmp_path: Path) -> None:
    project = table.copy(tmp_path).give(
        candidates={"small": [2, 8], "other": [1, 4, 8], "maybe": [0, 2], "never": [0]},
        search__candidates={"default": "small", "user": "other", "tags": "maybe", "price": "never"},
    )
    project.run("search", "derive", "retrain", "evaluate")
    scores = project.read("search/scores.json")["features"]
    expected = {"user": [1, 4, 8], "item": [2, 8], "price": [0], "tags": [0, 2]}
    assert {name: found["candidates"] for name, found in scores.items()} == expected
    report = check_report(project)
    searched = report["allocations"]["searched"]
    assert all(d in expected[name] for name, d in searched["dims"].items())
    assert searched["bytes_per_field"]["price"] == 0
    assert report["allocations"]["full"]["dims"]["price"] == 8
    plotted = pd.read_csv(tmp_path / "artifacts/trajectory.csv")
    series = set(zip(plotted.feature, plotted.dimension, strict=True))
    assert series == {(name, d) for name, dims in expected.items() for d in dims}


def test_an_allocation_edited_by_hand_may_drop_the_first_field_and_a_bag(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    edited = project.read("allocation.json")
    edited["dims"] |= dict.fromkeys(edited["dims"], 0) | {"item": 2}
    (tmp_path / "artifacts/allocation.json").write_text(json.dumps(edited))
    project.give(retrain__seeds=[0]).run("retrain", "evaluate")
    rows = {field["name"]: field["cardinality"] for field in finished.read("encoded/schema.json")["fields"]}
    assert check_report(project)["allocations"]["searched"]["bytes"] == 4 * (2 * rows["item"] + 2 * 8)


def test_a_budget_is_kept_and_one_too_small_is_refused_with_the_least(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path).give(derive__budget=0.2).run("derive")
    allocations = finished.read("report.json")["allocations"]
    full = allocations["full"]["bytes"]
    rows = {field["name"]: field["cardinality"] for field in finished.read("encoded/schema.json")["fields"]}

    def cost(dims: dict[str, int]) -> int:
        return sum(4 * (rows[name] * d + (d * 8 if d < 8 else 0)) for name, d in dims.items())

    assert cost(project.read("allocation.json")["dims"]) <= 0.2 * full < allocations["searched"]["bytes"]
    for draw in project.read("controls.json")["random"].values():
        assert cost(draw["dims"]) <= 0.2 * full
    before = project.files()
    least = cost(dict.fromkeys(rows, 1))
    assert least - 1 < 0.2 * full
    message = project.give(derive__budget=least - 1).error("derive")
    assert f"{least - 1:,} bytes or less" in message and f"the least is {least:,} bytes" in message
    assert project.files() == before
    project.give(derive__budget=least).run("derive")
    assert set(project.read("allocation.json")["dims"].values()) == {1}


def test_one_seed_is_enough(table: Project, tmp_path: Path) -> None:
    project = table.copy(tmp_path).give(retrain__seeds=[5]).run("search", "derive", "retrain", "evaluate")
    report = check_report(project, seeds=[5])
    assert all(compared["interval"] is None for compared in report["comparisons"])
    shown = (tmp_path / "artifacts/report.md").read_text()
    assert "±" not in shown and "no interval: it takes two seeds or more" in shown


def test_without_patience_all_epochs_are_trained_and_the_best_is_kept(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path).give(retrain__patience=None, retrain__epochs=3, retrain__seeds=[0])
    project.run("retrain", "evaluate")
    assert len(project.read("models/searched/seed-0/history.json")) == 3
    check_report(project, seeds=[0])


def test_the_same_parameters_give_the_same_files(finished: Project, planted: Project, tmp_path: Path) -> None:
    again = planted.copy(tmp_path).run("search", "derive", "retrain")
    files = again.files()
    same = [name for name in files if "/runs/" not in name]
    assert {name: files[name] for name in same} == {name: finished.files()[name] for name in same}
    assert "artifacts/models/random/seed-1/model.safetensors" in same
