"""The search and the retraining on two processes are those of one, and go on after a kill of either."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from pipeline.training import loop, ranks
from stages import retrain
from tests.project import Project
from tests.training.cases import started

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
TWO = {"search__devices": 2, "retrain__devices": 2}


@pytest.fixture(scope="module")
def asked(planted: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """With a backbone without BatchNorm, in which sums of float32 agree."""
    settings = {"search__epochs": 1, "retrain__seeds": [0], "retrain__checkpoint_seconds": 0.0}
    project = planted.copy(tmp_path_factory.mktemp("asked"))
    return project.give(backbone__name="autoint", search__checkpoint_seconds=0.0, **settings)


@pytest.fixture(scope="module")
def two(asked: Project, tmp_path_factory: pytest.TempPathFactory, forks: None) -> Project:
    return asked.copy(tmp_path_factory.mktemp("two")).give(**TWO).run("search", "derive", "retrain")


def models(project: Project) -> dict[str, Any]:
    folder = project.folder / "artifacts/models"
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("model.safetensors"))}


def dies() -> None:
    """The retraining as torchrun starts it; the second process is killed in the second model."""
    batches = 0

    def count(*_: Any) -> None:
        nonlocal batches
        batches += 1
        if batches == 12:
            os.kill(os.getpid(), signal.SIGKILL)

    if not ranks.first():
        loop._Bar.on_train_batch_end = count  # type: ignore[method-assign]
    retrain.run()


def test_two_processes_find_and_train_what_one_does(asked: Project, two: Project, tmp_path: Path) -> None:
    one = asked.copy(tmp_path).run("search", "derive", "retrain")
    names = {name for name in one.files() if "/runs/" not in name}
    assert {name for name in two.files() if "/runs/" not in name} == names
    searches = [pd.read_parquet(p.folder / "artifacts/trajectory.parquet") for p in (one, two)]
    pd.testing.assert_frame_equal(*searches, rtol=0, atol=1e-4)
    ours, theirs = models(one), models(two)
    assert len(ours) == 4 and ours.keys() == theirs.keys()
    for name, tensors in ours.items():
        for key, value in tensors.items():
            np.testing.assert_allclose(theirs[name][key], value, rtol=0, atol=2e-3, err_msg=f"{name} {key}")
    for name in ours:
        histories = [p.read(f"models/{Path(name).parent}/history.json") for p in (one, two)]
        aucs, others = ([entry["auc"] for entry in history] for history in histories)
        assert others == pytest.approx(aucs, abs=1e-4)


def test_the_first_process_alone_keeps_records(asked: Project, two: Project, tmp_path: Path) -> None:
    one = asked.copy(tmp_path).run("search", "derive", "retrain")
    for stage in ("search", "retrain"):
        counts = [len((p.folder / f"artifacts/runs/{stage}.jsonl").read_text().splitlines()) for p in (one, two)]
        assert counts[0] == counts[1] > 10
        assert len(list((two.folder / ".pipeline/tracking").glob(f"{stage}-*.jsonl"))) <= 1


def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(
    two: Project, tmp_path: Path, forks: None
) -> None:
    project = two.copy(tmp_path / "project")
    before = models(project)
    processes = started(dies, project.folder)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [1, -signal.SIGKILL]
    printed = (project.folder / "printed-0.txt").read_text()
    told = "error: another process of this training has ended; the same command goes on from the last checkpoint"
    assert printed.count("error") == 1 and told in printed
    kept = sorted(path.name for path in project.folder.glob(".pipeline/ckpt/retrain/*/*/*"))
    assert "seed-0" in kept and "seed-0.ckpt" in kept
    project.run("retrain")
    after = models(project)
    for name, tensors in before.items():
        for key, value in tensors.items():
            assert np.array_equal(after[name][key], value), (name, key)


def test_several_processes_and_several_workers_are_too_many(asked: Project, tmp_path: Path) -> None:
    message = asked.copy(tmp_path).give(retrain__devices=2, retrain__workers=2).error("retrain")
    assert message.startswith("params.yaml: retrain") and "with devices 2, workers must be 1, got 2" in message


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"search__cuda_graph": True, "search__devices": 2}, "search: with cuda_graph, devices must be 1, got 2"),
        (
            {"retrain__cuda_graph": True, "retrain__adagrad": 0.1},
            "retrain: with cuda_graph, adagrad must be null, got 0.1",
        ),
        ({"search__cuda_graph": True, "search__architecture__order": 2}, "architecture.order must be 1"),
        (
            {"search__precision": "bf16", "search__architecture__order": 2},
            "search: with precision bf16, architecture.order must be 1, got 2",
        ),
        ({"retrain__precision": "fp16"}, "retrain.precision"),
    ],
)
def test_what_a_replayed_or_rounded_step_excludes_is_told_before_anything_runs(
    asked: Project, tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    assert told in asked.copy(tmp_path).give(**settings).error("check")


def test_a_training_that_diverges_on_two_processes_ends_with_one_line(
    two: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = two.copy(tmp_path).give(retrain__lr=1e30).error("retrain")
    assert "searched, seed 0: " in message and "lower the learning rate: retrain.lr is 1e+30" in message
    assert "error" not in capfd.readouterr().err
