"""One allocation is trained as the parameters say, and somebody may end it early."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.embeddings.cost import full_tables
from pipeline.experiment.derive import derive, evidence
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.find import find
from pipeline.experiment.measure import model_bytes
from pipeline.experiment.saved import load, save
from pipeline.experiment.train import train
from pipeline.models.dense import Dense
from pipeline.training.weights import nowhere
from tests.experiment.small import experiment
from tests.training.clicks import SCHEMA

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
HALF = Allocation("autodim", dict.fromkeys(SCHEMA.names, 2))


def test_the_best_epoch_is_kept_and_judged_on_val(encoded: Path, tmp_path: Path) -> None:
    here = experiment(encoded, retrain={"lr": 0.05, "epochs": 6})
    trained = train(here, HALF, 0, tmp_path / "last.ckpt")
    assert [entry["step"] for entry in trained.history] == [5, 10, 15, 20, 25, 30] and trained.ended
    best = max(trained.history, key=lambda entry: entry["auc"])
    assert trained.validation == {name: best[name] for name in ("auc", "logloss", "calibration_error")}
    val = here.data.split("val")
    assert here.task.measure(here.task.predict(trained.model, val), val) == trained.validation


def test_the_rows_to_train_on_are_those_of_train_and_arch_or_a_share_of_them(encoded: Path, tmp_path: Path) -> None:
    here = experiment(encoded)
    whole, thin = here.training_rows(), here.training_rows(0.25)
    assert len(whole) == 500 and len(thin) == 125
    train_ids = np.load(encoded / "train/ids.npy")
    assert thin.slice(0, 100)[0].tolist() == train_ids[::4].tolist()
    trained = train(here, HALF, 0, tmp_path / "last.ckpt", share=0.25)
    assert [entry["step"] for entry in trained.history] == [2, 4, 6]


def test_whoever_is_asked_after_an_epoch_may_end_the_training(encoded: Path, tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []

    def go_on(epoch: int, objective: float) -> bool:
        told.append((epoch, objective))
        return epoch < 1

    trained = train(experiment(encoded), HALF, 0, tmp_path / "last.ckpt", go_on=go_on)
    assert told == [(epoch, entry["auc"]) for epoch, entry in enumerate(trained.history)] and len(told) == 2
    assert not trained.ended


def test_the_schedule_is_that_of_retrain_and_other_settings_have_a_constant_rate(encoded: Path, tmp_path: Path) -> None:
    def history(schedule: str, of: str) -> list[dict[str, float]]:
        here = experiment(encoded, retrain={"lr": 0.05, "epochs": 4, "schedule": schedule}, search={"lr": 0.05})
        settings = here.params.search if of == "search" else None
        return train(here, HALF, 0, tmp_path / "last.ckpt", settings=settings).history

    assert history("linear", "retrain") != history("constant", "retrain")
    assert history("linear", "search") == history("constant", "search") == history("constant", "retrain")[:2]


def test_settings_of_its_own_have_no_patience(encoded: Path, tmp_path: Path) -> None:
    here = experiment(encoded, retrain={"lr": 0.3, "epochs": 12, "patience": 1})
    patient = train(here, HALF, 0, tmp_path / "last.ckpt")
    assert 1 < len(patient.history) < 12
    own = train(here, HALF, 0, tmp_path / "last.ckpt", settings=here.params.retrain)
    assert len(own.history) == 12


def test_embeddings_that_train_alike_are_trained_once_with_the_same_result(encoded: Path, tmp_path: Path) -> None:
    retrain = {"lr": 0.05, "epochs": 2, "finetune": {"epochs": 1, "lr": 0.01}}
    here = experiment(encoded, method={"name": "coded"}, retrain=retrain)
    found = find(here, tmp_path / "search", nowhere)
    full = full_tables(here.schema, here.dim).bytes
    steps: list[int] = []

    def record(step: int, names: tuple[str, ...], values: object) -> None:
        steps.append(step)

    for share in (0.8, 0.6):
        allocation, _ = derive(here.method, evidence(found, here.schema, int(share * full)))
        alone = train(here, allocation, 0, tmp_path / "last.ckpt")
        again = train(here, allocation, 0, tmp_path / "last.ckpt", alike=tmp_path, record=record)
        assert alone.history == again.history and alone.validation == again.validation
        ours, theirs = alone.model.state_dict(), again.model.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert steps == [5, 10, 15, 15]  # of the second training only the finetuning


def test_dense_weights_are_rounded_after_training_and_stay_so(encoded: Path, tmp_path: Path) -> None:
    retrain = {"lr": 0.02, "epochs": 2, "dense_bits": 3, "finetune": {"epochs": 2, "lr": 0.01}}

    def replaced(settings: dict[str, Any]) -> Experiment:
        return experiment(encoded, backbone={"name": "deepfm"}, retrain=settings)

    float32 = train(replaced(retrain | {"dense_bits": None, "finetune": None}), HALF, 0, tmp_path / "last.ckpt")
    here = replaced(retrain)
    judged: list[float] = []

    def record(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        if "val/auc" in names and step > 10:  # of the second training
            judged.append(values[names.index("val/auc")])

    trained = train(here, HALF, 0, tmp_path / "last.ckpt", record=record)
    assert trained.validation["auc"] == max(judged)  # epochs are judged as they are served
    layers = [module for module in trained.model.modules() if isinstance(module, Dense)]
    assert len(layers) == 3
    rounded = train(replaced(retrain | {"finetune": None}), HALF, 0, tmp_path / "last.ckpt")
    assert trained.validation["auc"] >= rounded.validation["auc"]
    for layer in layers:
        codes = layer.weight.detach() / layer.scale.float()[:, None]
        torch.testing.assert_close(codes, codes.round().clamp(-3, 3), atol=1e-4, rtol=0)
    save(tmp_path / "saved", here, trained.model, HALF, trained.history)
    loaded, _ = load(tmp_path / "saved", here)
    val = here.data.split("val")
    assert here.task.measure(here.task.predict(loaded, val), val) == trained.validation
    assert model_bytes(loaded) < model_bytes(float32.model) / 4
