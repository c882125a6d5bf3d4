"""What a sweep finds, and the files and runs that it leaves."""

import logging
import re
import shlex
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from pipeline.sweeps import storage, sweep
from pipeline.tracking.sync import synchronise
from pipeline.workflow.yaml_values import read_yaml
from tests.project import Project
from tests.sweeps.sweeps import DECLARED, QUIET, results, rows

pytestmark = QUIET


def merged(base: Any, changes: Any) -> Any:
    """Mappings merged into mappings; anything else replaces what is there."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    return {**base, **{name: merged(base.get(name), value) for name, value in changes.items()}}


def test_no_trial_opens_the_test_rows(swept: Project, opened: set[str]) -> None:
    assert not (swept.folder / "artifacts/encoded/test").exists() and len(rows(swept)) == 3
    assert opened == {"train", "arch", "val"}
    assert not any("test" in dep for dep in DECLARED["deps"])


def test_the_front_holds_the_trials_that_none_surpasses(swept: Project) -> None:
    found = rows(swept)
    assert [row["trial"] for row in found] == ["0", "1", "2"] and {row["ended"] for row in found} == {"complete"}
    points = [(float(row["val_objective"]), int(row["bytes"])) for row in found]
    for row, (auc, size) in zip(found, points, strict=True):
        surpassed = any(a >= auc and b <= size and (a, b) != (auc, size) for a, b in points)
        assert row["best"] == ("0" if surpassed else "1")
    assert len(set(points)) == 3


def test_values_lie_in_their_ranges_and_make_a_difference(swept: Project) -> None:
    for row in rows(swept):
        assert 0.1 <= float(row["method.options.autodim.warm_up"]) <= 0.6
        assert 0.005 <= float(row["search.architecture.lr"]) <= 0.1
        assert row["search.architecture.every"] in ("1", "2") and row["search.weight_decay"] in ("0.0", "1e-05")
        even = row["search.candidates.user, item"] == "even"
        assert row["dim.user"] in (("2", "4", "6", "8") if even else ("1", "2", "4", "8"))


def test_the_best_parameters_make_the_best_trial_again(swept: Project, planted: Project, tmp_path: Path) -> None:
    best = max(rows(swept), key=lambda row: float(row["val_objective"]))
    text = (swept.folder / "artifacts/sweep/best.yaml").read_text()
    [command] = re.findall(r"(?m)^# (dvc exp run .*)$", text)
    project = swept.copy(tmp_path)
    vocabulary = "artifacts/encoded/vocabulary.parquet"  # `retrain` keeps it with its models; a sweep does not need it
    shutil.copy(planted.folder / vocabulary, tmp_path / vocabulary)
    before = read_yaml(tmp_path / "params.yaml")
    overrides = [word for word in shlex.split(command)[3:] if word != "-S"]
    apply_overrides(str(tmp_path / "params.yaml"), overrides)  # as `dvc exp run -S` does
    with project.inside():
        assert read_yaml("params.yaml") == merged(before, yaml.safe_load(text))
    project.run("search", "derive", "retrain")
    dims = project.read("allocation.json")["dims"]
    assert dims == {name.removeprefix("dim."): int(d) for name, d in best.items() if name.startswith("dim.")}
    history = project.read("models/searched/seed-0/history.json")
    assert repr(max(entry["auc"] for entry in history)) == best["val_objective"]


def test_within_a_budget_large_allocations_are_not_retrained_and_bad_ones_end_early(
    swept: Project, ready: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "UNPRUNED_TRIALS", 1)
    budget = sorted(int(row["bytes"]) for row in rows(swept))[1]
    changes = {"sweep__objective": "budget", "sweep__budget": budget, "sweep__trials": 8, "retrain__epochs": 3}
    found = rows(ready.copy(tmp_path).give(**changes).run("sweep"))
    assert len(found) == 8 and {row["ended"] for row in found} == {"complete", "early", "over budget"}
    for row in found:
        assert (row["ended"] == "over budget") == (int(row["bytes"]) > budget) == (row["val_objective"] == "")
    complete = [row for row in found if row["ended"] == "complete"]
    [best] = (row for row in found if row["best"] == "1")
    assert best == max(complete, key=lambda row: float(row["val_objective"]))
    early = [row for row in found if row["ended"] == "early"]
    assert all(float(row["val_objective"]) < float(best["val_objective"]) for row in early)


@pytest.mark.parametrize("objective", ["pareto", "budget"])
def test_values_that_were_tried_before_are_not_trained_again(
    ready: Project, tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    plain = sweep.run
    monkeypatch.setattr(sweep, "run", lambda experiment, *rest: trained.append(experiment) or plain(experiment, *rest))
    space = {"search": {"weight_decay": [0.0, 0.001], "candidates": ["planted", "even"]}}
    limit = {"sweep__objective": objective, "sweep__budget": 0.5 if objective == "budget" else None}
    project = ready.copy(tmp_path).give(sweep__space=space, sweep__trials=7, sweep__sampler="random", **limit)
    found = rows(project.run("sweep"))
    different = {tuple(value for name, value in row.items() if name.startswith("search.")) for row in found}
    assert len(found) == 7 and len(trained) == len(different) <= 4
    for row in found:
        (first, *_) = (one for one in found if all(one[n] == row[n] for n in row if n.startswith("search.")))
        assert {**row, "trial": first["trial"], "best": first["best"]} == first
    assert sum(row["best"] == "1" for row in found) >= 1


def test_the_page_is_one_file_with_all_that_was_found(swept: Project) -> None:
    page = (swept.folder / "artifacts/sweep/sweep.html").read_text()
    assert not re.findall(r'(?:src|href)="[^#]', page) and "<script" not in page
    assert page.count("<svg") == 3 and "prefers-color-scheme: dark" in page and "@media print" in page
    assert "<p>3 trials (3 complete). Aim: best AUC on val, fewest bytes. The test rows were not used.</p>" in page
    for row in rows(swept):
        assert f"<tr><td>{row['trial']}</td><td>complete</td><td>{float(row['val_objective']):.4f}</td>" in page
    figures = {path.name for path in (swept.folder / "artifacts/sweep/figures").glob("*.png")}
    assert figures == {"front.png", "history.png", "importances.png"}


def test_every_trial_is_a_child_of_the_sweep_with_its_trajectories(
    swept: Project, tmp_path: Path, migrated: Path
) -> None:
    project = swept.copy(tmp_path)
    shutil.copy(migrated, tmp_path)
    with project.inside() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        synchronise(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        names = dict(store.execute("select run_uuid, name from runs where status = 'FINISHED'"))
        parents = dict(store.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
        children = {name: run for run, name in names.items() if run in parents}
        assert sorted(children) == ["sweep/trial-0", "sweep/trial-1", "sweep/trial-2"]
        [parent] = set(names) - set(parents)
        assert set(parents.values()) == {parent} and names[parent].startswith("sweep-")
        for row in rows(swept):
            asked = (children[f"sweep/trial-{row['trial']}"],)
            points = list(store.execute("select key, step, value from metrics where run_uuid = ?", asked))
            last = {key: value for key, _, value in sorted(points, key=lambda point: point[1])}
            assert last["val/auc"] == float(row["val_objective"]) and last["bytes"] == int(row["bytes"])
            steps = {step for key, step, _ in points if key == f"search/p/price/{row['dim.price']}"}
            assert len(steps) > 3 and {"retrain/val/auc", "search/tau"} <= set(last)
            params = dict(store.execute("select key, value from params where run_uuid = ?", asked))
            assert params["method.options.autodim.warm_up"] == row["method.options.autodim.warm_up"]


def test_a_sweep_without_any_trial_within_its_budget_says_so(
    ready: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline.sweeps")
    changes = {"sweep__objective": "budget", "sweep__budget": 100, "sweep__trials": 1}
    project = ready.copy(tmp_path).give(**changes).run("sweep")
    printed = capsys.readouterr().out
    assert ", 0 of 1 trial finished\n" in printed
    remedy = "widen sweep.space in params.yaml, or set derive.budget to this size, so that every derivation keeps it"
    told = f"sweep: 1 trial, none complete within the budget of 100 bytes; {remedy}\n"
    assert told in printed
    [trial] = [record.getMessage() for record in caplog.records if record.name == "pipeline.sweeps"]
    size = r"[\d,]+ bytes \(\d+\.\d% of the full tables'\), \d+ s"
    assert re.fullmatch(f"sweep: trial-0: over the budget, not retrained, {size}", trial)
    assert not (project.folder / "artifacts/sweep/best.yaml").exists() and len(rows(project)) == 1


def test_more_trials_continue_the_study_as_one_longer_sweep_would(
    swept: Project, ready: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = ready.copy(tmp_path).give(sweep__trials=1)
    for told in ("sweep: 1 trial, ", "sweep: 0 trials, "):
        project.run("sweep")
        assert told in capsys.readouterr().out
    project.give(sweep__trials=3).run("sweep")
    assert ", 1 of 3 trials finished" in capsys.readouterr().out
    assert results(project) == results(swept)


@pytest.mark.parametrize("part", ["search", "retrain"])
def test_a_trial_that_diverges_is_a_result_and_the_sweep_goes_on(
    ready: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    space = {part: {"lr": [0.03, 1e30]}}
    project = ready.copy(tmp_path).give(sweep__space=space, sweep__sampler="random", sweep__trials=4)
    with caplog.at_level(logging.INFO, "pipeline.sweeps"):
        project.run("sweep")
    found = rows(project)
    assert len(found) == 4 and {row["ended"] for row in found} == {"complete", "diverged"}
    for row in found:
        diverged = float(row[f"{part}.lr"]) > 1
        assert row["ended"] == ("diverged" if diverged else "complete") and (row["val_objective"] == "") == diverged
        assert (row["bytes"] == row["dim.user"] == "") == (diverged and part == "search")
        assert not (diverged and row["best"] == "1")
    told = [record.message for record in caplog.records if "diverged" in record.message]
    assert told and all(f"lower the learning rate: {part}.lr is 1e+30" in line for line in told)
    assert "<td>diverged</td>" in (tmp_path / "artifacts/sweep/sweep.html").read_text()
