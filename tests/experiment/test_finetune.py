"""A second training is kept only if it is better on val, and is resumed where it was interrupted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.experiment.train import Trained, train
from pipeline.training.weights import Diverged
from tests.experiment.small import experiment
from tests.training.clicks import SCHEMA

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
HALF = Allocation("uniform", dict.fromkeys(SCHEMA.names, 2))


def trained(encoded: Path, folder: Path, finetune: Any, method: Allocation = HALF, **more: Any) -> Trained:
    settings = {"lr": 0.02, "epochs": 2, "patience": None, "checkpoint_seconds": 0, "finetune": finetune}
    return train(experiment(encoded, retrain=settings), method, 0, folder / "last.ckpt", **more)


def state(result: Trained) -> dict[str, torch.Tensor]:
    return dict(result.model.state_dict())


def equal(one: Trained, other: Trained) -> bool:
    return all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


def test_it_is_kept_only_if_it_is_better(encoded: Path, tmp_path: Path) -> None:
    plain = trained(encoded, tmp_path / "a", None)
    better = trained(encoded, tmp_path / "b", {"epochs": 3, "lr": 0.02})
    assert better.validation["auc"] > plain.validation["auc"] and not equal(plain, better)
    worse = trained(encoded, tmp_path / "c", {"epochs": 1, "lr": 100.0})
    assert worse.validation == plain.validation and equal(plain, worse)


def test_its_steps_are_recorded_after_those_of_the_first_training(encoded: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def record(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        if "val/auc" in names:
            seen.append(step)

    trained(encoded, tmp_path, {"epochs": 2, "lr": 0.02}, record=record)
    assert seen == [5, 10, 15, 20]


def test_an_interrupted_one_is_resumed_and_ends_the_same(encoded: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        if step == 15:
            raise Killed

    settings = {"epochs": 3, "lr": 0.02}
    whole = trained(encoded, tmp_path / "whole", settings)
    with pytest.raises(Killed):
        trained(encoded, tmp_path / "parts", settings, record=kill)
    assert (tmp_path / "parts/last.finetune").exists()
    resumed = trained(encoded, tmp_path / "parts", settings)
    assert equal(whole, resumed) and whole.validation == resumed.validation
    assert not (tmp_path / "parts/last.finetune").exists()


def test_one_that_diverges_ends_with_its_own_learning_rate(encoded: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"lower the learning rate: retrain\.finetune\.lr is 1e\+30"):
        trained(encoded, tmp_path, {"epochs": 1, "lr": 1e30})


def test_rounded_tables_stay_rounded(encoded: Path, tmp_path: Path) -> None:
    int4 = trained(encoded, tmp_path, {"epochs": 3, "lr": 0.02}, Allocation("int4", dict.fromkeys(SCHEMA.names, 2)))
    table = int4.model.embedding.get_parameter("tables.2.weight").detach()
    scale = int4.model.embedding.get_buffer("scale_2").float()[:, None]
    codes = table / scale.clamp(min=1e-9)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("pq", {"weights": "log2"}), ("dpq", {"variant": "vx"}), ("dpq", {"variant": "sx", "temperature": 1.0})],
)
def test_codes_stay_and_codebooks_learn(encoded: Path, tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    method = Allocation(name, dict.fromkeys(SCHEMA.names, 4), {"groups": 2, "centroids": [4], **settings})
    plain = trained(encoded, tmp_path / "a", None, method)
    better = trained(encoded, tmp_path / "b", {"epochs": 3, "lr": 0.02}, method)
    assert better.validation["auc"] > plain.validation["auc"]
    before, after = (result.model.embedding.packed() for result in (plain, better))
    assert torch.equal(before["code"], after["code"]) and bool(before["code"].any())
    assert not torch.equal(before["codebook"], after["codebook"])
