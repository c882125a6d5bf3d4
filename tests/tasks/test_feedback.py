"""The task of feedback: what it refuses, its derivatives, and the six stages on sessions of a small world."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.data.batches import Batch
from pipeline.data.encoded import Encoded, Labels
from pipeline.data.schema import Field, Schema
from pipeline.data.split import Split
from pipeline.scoring.files import score_file
from pipeline.scoring.pyfunc import Rows
from pipeline.scoring.scorer import Scorer
from pipeline.tasks import feedback
from pipeline.training.task import Task
from tests.project import SMALL, STAGES, Project

TASK = Task.of("feedback", feedback, {})


class Given(nn.Module):
    """Logits (n, 4), one row for each id."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits[ids[:, 0].long()]


def batch(labels: list[int]) -> Batch:
    return Batch(torch.arange(len(labels))[:, None].int(), torch.tensor(labels, dtype=torch.float32))


def test_the_loss_is_the_mean_of_the_cross_entropy() -> None:
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 3, 0, 2]
    plain = [-float(torch.log(row.exp()[y] / row.exp().sum())) for row, y in zip(logits, labels, strict=True)]
    assert TASK.loss(Given(logits), batch(labels)).item() == pytest.approx(sum(plain) / 6, rel=1e-5)
    torch.testing.assert_close(TASK.answer(logits).sum(1), torch.ones(6))


def test_the_outer_products_of_the_probe_are_the_second_derivative_of_the_loss() -> None:
    row = torch.tensor([0.3, -1.0, 1.2, 0.0])
    hessian = torch.autograd.functional.hessian(lambda z: cross_entropy(z[None], torch.tensor([1])), row)
    model, many = Given(row.repeat(40_000, 1)), batch([1] * 40_000)
    (gradient,) = torch.autograd.grad(TASK.probe(model, many), model.logits)
    torch.testing.assert_close(gradient.T @ gradient / 40_000, hessian, atol=0.01, rtol=0)
    again, *_ = torch.autograd.grad(TASK.probe(model, many), model.logits)
    assert torch.equal(again, gradient)


def test_the_metrics_are_those_of_the_labels() -> None:
    split = Split((np.zeros((4, 1), np.int32),), (np.array([0, 1, 3, 0], np.float32),))
    measured = TASK.measure(np.zeros((4, 4), np.float32), split)
    entropy = 0.5 * np.log(2) + 0.5 * np.log(4)
    assert list(measured) == list(feedback.METRICS) and TASK.objective == "r_squared"
    assert measured["logloss"] == pytest.approx(np.log(4))
    assert measured["r_squared"] == pytest.approx(1 - np.log(4) / entropy)
    assert measured["calibration_error"] == pytest.approx(np.mean([0.25, 0, 0.25, 0]))
    assert TASK.influence(np.zeros((4, 4), np.float32), split).mean() == pytest.approx(0)


def encoded(folder: Path, labels: list[float], **others: Labels) -> Encoded:
    (folder / "train").mkdir()
    np.save(folder / "train/ids.npy", np.zeros((len(labels), 1), np.int32))
    np.save(folder / "train/labels.npy", np.array(labels, np.float32))
    good = Labels(10, 0.5, 0, 3, False)
    return Encoded(folder, Schema((Field("a", 2),)), dict.fromkeys(("train", "arch", "val", "test"), good) | others, {})


@pytest.mark.parametrize(
    ("labels", "others", "message"),
    [
        ([0, 1.5, 3], {}, "part 'train' has the label 1.5, and task feedback needs whole numbers from 0 to 3"),
        ([0, 3], {"val": Labels(3, 2, 0, 5, False)}, "labels of part 'val' go from 0 to 5, and .* numbers from 0 to 3"),
        ([0, 3], {"test": Labels(3, 0, -1, 1, False)}, "labels of part 'test' go from -1 to 1"),
        ([0, 3], {"test": Labels(3, 2, 2, 2, False)}, "all 3 rows of part 'test' have the label 2.*encode.split.test"),
    ],
)
def test_labels_that_are_no_feedback_are_refused(
    tmp_path: Path, labels: list[float], others: dict[str, Labels], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.check(encoded(tmp_path, labels, **others))


def test_labels_of_feedback_are_accepted(tmp_path: Path) -> None:
    data = encoded(tmp_path, [0, 3, 2, 1])
    TASK.check(data)  # raises nothing
    assert data.split("train").all_labels().tolist() == [0, 3, 2, 1]


@pytest.mark.parametrize(
    ("task", "backbone", "message"),
    [
        ("feedback", "deepfm", "task feedback needs 4 outputs of a row, and deepfm gives 1; there are session"),
        ("ctr", "session", "task ctr needs 1 outputs of a row, and session gives 4; there are autoint, dcn_v2, deepfm"),
    ],
)
def test_a_backbone_that_does_not_fit_the_task_is_refused_before_anything_runs(
    tmp_path: Path, task: str, backbone: str, message: str
) -> None:
    project = Project(tmp_path, task={"name": task}, backbone={"name": backbone})
    assert message in project.error("check")


# --- the six stages


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    dataset = {"name": "sessions", "path": "data", "options": {"transitions": 6000, "options": {"items": 12}}}
    made = Project(tmp_path_factory.mktemp("sessions"), dataset=dataset, task={"name": "feedback"}, **SMALL)
    made.give(backbone={"name": "session", "options": {"hidden": [16]}}, method__name="coded", derive__budget=0.3)
    return made.give(retrain__epochs=8, retrain__dense_bits=4, retrain__seeds=[0]).run("check", *STAGES)


def test_a_behaviour_model_goes_through_all_stages(project: Project) -> None:
    report = project.read("report.json")
    assert (report["task"], report["objective"], report["dataset"]) == ("feedback", "r_squared", "sessions")
    full, searched = (report["allocations"][name] for name in ("full", "searched"))
    assert 0.02 < full["metrics"]["r_squared"]["mean"] < 0.3
    assert searched["bytes"] <= 0.3 * full["bytes"] and searched["model_bytes"] < full["model_bytes"]
    assert set(full["served"]) >= {"float32", "int8"} and searched["served"]
    for served in (*full["served"].values(), *searched["served"].values()):
        assert served["objective_loss"] == pytest.approx(0, abs=0.01)
    facts: dict[str, Any] = json.loads((project.folder / "artifacts/raw/raw.json").read_text())["facts"]
    assert facts["items"] == 12
    assert facts["least_logloss"] - 0.05 < full["metrics"]["logloss"]["mean"] < 1.3


def test_new_rows_get_the_chances_of_every_feedback(project: Project, tmp_path: Path) -> None:
    table = pd.read_parquet(project.folder / "artifacts/raw/table.parquet").head(50)
    rows = tmp_path / "rows.parquet"
    table.drop(columns=["label", "time"]).to_parquet(rows)
    scorer = Scorer.load(project.folder / "artifacts/models/searched/seed-0")
    for name in ("out.parquet", "out.csv"):
        score_file(scorer, rows, tmp_path / name, ["item"])
    out = pd.read_parquet(tmp_path / "out.parquet")
    assert list(out) == ["item", "skip", "click", "order", "leave"] and len(out) == 50
    np.testing.assert_allclose(out[list(feedback.COLUMNS)].sum(axis=1), 1, rtol=1e-5)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv").astype(out.dtypes), out, rtol=1e-4)
    told = Rows(scorer).predict(pd.read_parquet(rows))
    pd.testing.assert_frame_equal(told, out[list(feedback.COLUMNS)], rtol=1e-4)
    with pytest.raises(ValueError, match="'click' is the name of the answers"):
        score_file(scorer, rows, tmp_path / "out.csv", ["click"])
