"""The seam of tasks: another task is one file, and the six stages do not notice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.tasks import ctr
from tests.project import ROOT, SMALL, STAGES, Project

REGRESSION = '''
"""The number itself: squared error, and one metric."""

import numpy as np
import torch

from pipeline.data.batches import Batches
from pipeline.models.model import outputs

METRICS = {"explained": "explained variance"}


def check(data):
    pass


def batches(split, batch_size, seed=None):
    return Batches(split, batch_size, seed)


def loss(model, batch, *, scale: float = 1.0):
    return scale * torch.nn.functional.mse_loss(model(batch.ids), batch.labels)


def predict(model, split):
    return outputs(model, split)


def _errors(predictions, split):
    labels = split.all_labels()
    return np.square(predictions - labels), labels.var()


def measure(predictions, split):
    errors, variance = _errors(predictions, split)
    return {"explained": float(1 - errors.mean() / variance)}


def influence(predictions, split):
    errors, variance = _errors(predictions, split)
    return (errors.mean() - errors) / variance
'''


@pytest.fixture(scope="module")
def regressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with one more file, in which the six stages have run on numbers as labels."""
    folder = tmp_path_factory.mktemp("regression")
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pipeline/tasks/squared_error.py").write_text(REGRESSION)
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 30, 1500), rng.integers(0, 20, 1500)
    labels = rng.normal(size=30)[users] + rng.normal(size=20)[items] + 0.1 * rng.normal(size=1500)
    lines = [f"{y:.4f},u{u},i{i}" for y, u, i in zip(labels, users, items, strict=True)]
    (folder / "ratings.csv").write_text("\n".join(["score,user,item", *lines]) + "\n")
    options = {"label": "score", "label_type": "number", "categorical": ["user", "item"]}
    project = Project(folder, link=False, dataset={"name": "table", "path": "ratings.csv", "options": options}, **SMALL)
    project.give(task={"name": "squared_error", "options": {"scale": 0.5}}, search__epochs=6, retrain__epochs=20)
    environment = {**os.environ, "PIPELINE_TRACKING": "journal", "OMP_NUM_THREADS": "1"}
    stages = ", ".join(("check", *STAGES))
    program = f"from stages import {stages}\nfor stage in ({stages}):\n    stage.run()"  # torch is imported once
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_second_task_runs_through_all_six_stages_with_its_own_metric(regressed: Path) -> None:
    report = json.loads((regressed / "artifacts/report.json").read_text())
    assert (report["task"], report["objective"]) == ("squared_error", "explained")
    searched = report["allocations"]["searched"]["metrics"]
    assert set(searched) == {"explained"} and searched["explained"]["mean"] > 0.5
    shown = (regressed / "artifacts/report.md").read_text()
    assert "| allocation | explained variance | bytes |" in shown and "AUC" not in shown
    drawn = (regressed / "artifacts/figures/objective_against_bytes.svg").read_text()
    assert "explained variance" in drawn and "AUC" not in drawn
    history = json.loads((regressed / "artifacts/models/searched/seed-0/history.json").read_text())
    assert set(history[0]) == {"step", "explained"}


def test_no_click_is_known_outside_the_tasks_and_their_metrics() -> None:
    """Words of the click stay in `tasks`, `metrics`, data sets about clicks, and comments on them."""
    inside = ("pipeline/tasks/", "pipeline/metrics/")
    words = ('"auc"', "'auc'", "binary_cross_entropy", "label_rate", "logloss(")
    files = [path for folder in ("pipeline", "stages") for path in (ROOT / folder).rglob("*.py")]
    knowing = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in files
        for word in words
        if word in path.read_text() and not str(path.relative_to(ROOT)).startswith(inside)
    ]
    assert not knowing


def test_the_click_is_judged_by_auc_logloss_and_calibration_and_needs_both_labels_in_every_part() -> None:
    from pipeline.data.encoded import Encoded, Labels
    from pipeline.data.schema import Field, Schema
    from pipeline.data.split import Split

    assert next(iter(ctr.METRICS)) == "auc"
    split = Split((np.zeros((4, 1), np.int32),), (np.array([0, 1, 0, 1], np.uint8),))
    metrics = ctr.measure(np.array([-1.0, 1.0, 0.0, 0.0]), split)
    assert metrics["auc"] == 0.875 and metrics["logloss"] == pytest.approx(
        (2 * np.log1p(np.exp(-1)) + 2 * np.log(2)) / 4
    )
    alone = Split((np.zeros((2, 1), np.int32),), (np.array([1, 1], np.uint8),))
    assert np.isnan(ctr.measure(np.zeros(2), alone)["auc"])

    def data(test: Labels) -> Encoded:
        good = Labels(10, 0.5, 0, 1, True)
        parts = {"train": good, "arch": good, "val": good, "test": test}
        return Encoded(Path("encoded"), Schema((Field("a", 2),)), parts, {})

    ctr.check(data(Labels(3, 0.3, 0, 1, True)))
    with pytest.raises(ValueError, match=r"all 3 rows of part 'test' have the label 1.*raise encode.split.test"):
        ctr.check(data(Labels(3, 1, 1, 1, True)))
    with pytest.raises(
        ValueError, match=r"labels of part 'test' go from -1 to 5, and task ctr needs labels of 0 and 1"
    ):
        ctr.check(data(Labels(3, 1, -1, 5, False)))
