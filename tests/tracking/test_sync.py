"""`stages.sync`: which stages it takes for current, and what DVC restores."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.tracking.tracker import Tracker
from pipeline.workflow.params import Params
from stages import sync
from tests.project import Project
from tests.tracking.stores import REPOSITORY, artifacts, followers, parents, runs, until

STAGES = {  # what the stages of a small pipeline declare
    "encode": {"params": ["dim"], "deps": ["code"], "outs": ["artifacts/encoded"]},
    "derive": {"params": ["derive"], "deps": ["artifacts/encoded/schema.json"], "outs": ["artifacts/allocation.json"]},
    "retrain": {"params": ["retrain.lr"], "deps": ["artifacts/allocation.json"], "outs": ["artifacts/models"]},
    "evaluate": {"params": ["dim"], "deps": ["artifacts/models", "artifacts/allocation.json"], "outs": []},
}


def dvc(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def journal(stage: str) -> str:
    return f"artifacts/runs/{stage}.jsonl"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which all stages have run, as DVC leaves it; without any journal but the published ones."""
    folder = tmp_path_factory.mktemp("finished")
    with Project(folder, derive__budget=0.25).inside():
        stages = {
            name: {"cmd": "true", **stage, "outs": [*stage["outs"], journal(name)]} for name, stage in STAGES.items()
        }
        Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
        for file in ("code/a.py", "artifacts/encoded/schema.json", "artifacts/allocation.json", "artifacts/models/w"):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text("1")
        configuration = Params.load().configuration()
        for name in STAGES:
            with Tracker(folder, name, "k1", configuration, publish=journal(name)) as tracker:
                tracker.run()
                if name == "evaluate":
                    tracker.parent({"auc": 0.7})
        shutil.rmtree(".pipeline")
        dvc("init", "--no-scm", "--quiet")
        dvc("commit", "--force", "--quiet")
    return folder


@pytest.fixture
def workspace(finished: Path, journal_only: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, with an empty store."""
    shutil.copytree(finished, journal_only, symlinks=True, dirs_exist_ok=True)
    monkeypatch.setattr(sys, "argv", ["sync"])
    return journal_only


def synchronised(root: Path) -> list[str]:
    """The stages that have runs after `stages.sync`."""
    sync.run()
    return [stage for stage in STAGES if runs(root, pipeline_stage=stage)]


def test_all_stages_that_are_current_are_synchronised_and_finish_their_parent(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synchronised(workspace) == list(STAGES)
    printed = capsys.readouterr()
    assert printed.out.count("uploaded") == 4 and printed.err == ""
    [parent] = parents(workspace)
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"auc": 0.7})


def give(**values: Any) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    for section, value in values.items():
        params[section] = {**params[section], **value} if isinstance(value, dict) else value
    Path("params.yaml").write_text(yaml.safe_dump(params))


def with_other_params() -> None:
    give(derive={"budget": 0.13})


def with_another_allocation() -> None:
    """As ``dvc repro -s derive`` with another budget leaves it: what follows has used the old allocation."""
    with_other_params()
    Path("artifacts/allocation.json").write_text("2")
    dvc("commit", "--force", "--quiet", "derive")


def with_other_code() -> None:
    Path("code/a.py").write_text("2")


def with_another_schema() -> None:
    Path("artifacts/encoded/schema.json").write_text("2")


def with_the_journal_of_another_run() -> None:
    file = Path(journal("retrain"))
    file.write_text(file.read_text().replace('"FINISHED"', '"FAILED"'))


def without_a_journal() -> None:
    Path(journal("retrain")).unlink()


def without_a_stage() -> None:
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    del lock["stages"]["evaluate"]
    Path("dvc.lock").write_text(yaml.safe_dump(lock))


@pytest.mark.parametrize(
    ("change", "first", "reason"),
    [
        (with_other_params, "derive", "derive changed"),
        (with_another_allocation, "retrain", "artifacts/allocation.json changed"),
        (with_other_code, "encode", "code changed"),
        (with_another_schema, "encode", "artifacts/encoded changed"),
        (with_the_journal_of_another_run, "retrain", "artifacts/runs/retrain.jsonl changed"),
        (without_a_journal, "retrain", "artifacts/runs/retrain.jsonl changed"),
        (without_a_stage, "evaluate", "artifacts/runs/evaluate.jsonl"),
    ],
)
def test_synchronising_stops_before_the_first_stage_that_is_not_current_and_finishes_no_parent(
    workspace: Path, capsys: pytest.CaptureFixture[str], change: Callable[[], None], first: str, reason: str
) -> None:
    """With `with_another_allocation`, an allocation of 13 % stood in MLflow with the AUC of another one."""
    change()
    before = list(STAGES)[: list(STAGES).index(first)]
    assert synchronised(workspace) == before
    printed = capsys.readouterr().err
    assert f"{first} and what follows are not synchronised: " in printed and "run `dvc repro` first" in printed
    assert reason in printed
    for parent in parents(workspace):
        assert (parent.info.status, parent.data.metrics) == ("SCHEDULED", {})
    assert len(parents(workspace)) == bool(before)


def test_outputs_that_are_gone_make_no_result_another(workspace: Path) -> None:
    shutil.rmtree("artifacts/models")
    Path("artifacts/allocation.json").unlink()
    assert synchronised(workspace) == list(STAGES)


def test_without_a_dvc_lock_or_without_dvc_nothing_restored_is_current(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dvc.lock").unlink()
    assert synchronised(workspace) == []
    assert "encode and what follows are not synchronised" in capsys.readouterr().err
    Path(".dvc").rename("moved")  # not deleted: a process that DVC leaves behind may write to it
    assert synchronised(workspace) == []
    assert "artifacts/runs is left out: `dvc status` failed" in capsys.readouterr().err


def test_what_dvc_restores_comes_into_a_new_store(root: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real stages under a real DVC; some seconds, for it is the only proof that the parts fit."""

    def made(store: str | Path) -> list[Any]:
        return [
            (run.info.run_name, artifacts(root, run), run.data.metrics, run.data.params, run.inputs)
            for run in sorted(runs(store), key=lambda run: run.info.run_name)
        ]

    for name in ("pipeline", "stages"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    values["dataset"]["options"]["rows"] = 1000
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("data").mkdir()
    dvc("init", "--no-scm", "--quiet")
    assert "Running stage 'encode'" in dvc("repro", "encode")
    until(lambda: not followers(root), seconds=10)  # it ends with dvc, but not before its work
    first = made(root)
    assert [row[:2] for row in first] == [
        ("encode", ["fields.csv", "schema.json"]),
        ("ingest", ["raw.json"]),
        ("synthetic, autodim, deepfm", []),
    ]
    assert {run.info.status for run in runs(root)} == {"FINISHED"}
    shutil.rmtree("artifacts")
    shutil.copy(migrated, root / "new.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///new.db")
    monkeypatch.setattr(sys, "argv", ["sync"])
    assert "Running stage" not in dvc("repro", "encode")
    assert made(f"sqlite:///{root}/new.db") == []
    for _ in range(2):
        sync.run()
        assert repr(made(f"sqlite:///{root}/new.db")) == repr(first)
        status = {run.info.run_name: run.info.status for run in runs(f"sqlite:///{root}/new.db")}
        assert status == {"encode": "FINISHED", "ingest": "FINISHED", "synthetic, autodim, deepfm": "SCHEDULED"}
