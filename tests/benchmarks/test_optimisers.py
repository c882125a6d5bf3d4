"""Row-sparse updates and dense Adam are compared on equal terms, and the table says what the comparison leaves open."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import models, optimisers, shapes
from pipeline.data.batches import Batch
from pipeline.data.encoded import Encoded
from pipeline.data.schema import Field, Schema
from pipeline.experiment.experiment import Experiment
from pipeline.training.weights import LitWeights

SCHEMA = Schema((Field("a", 40), Field("b", 30), Field("c", 20)))
BATCH = 16


def plain() -> LitWeights:
    torch.manual_seed(0)
    return models.plain(SCHEMA, models.split(shapes.draw_batches(SCHEMA, BATCH, 1)), dim=4)


def weights_of(module: LitWeights) -> torch.Tensor:
    return module.model.embedding.tables["4"].weight


def test_dense_and_row_sparse_steps_differ_only_in_rows_that_a_later_batch_does_not_look_up() -> None:
    sparse = plain()
    dense = optimisers.DenseWeights(plain().model, sparse.task, sparse.validation, sparse.planned)
    one, two = (torch.tensor([[v, v, v]] * BATCH, dtype=torch.int32) + torch.arange(BATCH)[:, None] % 3 for v in (0, 5))
    labels = (torch.arange(BATCH) % 2).float()
    arms = [(module, module.configure_optimizers()) for module in (sparse, dense)]
    states = []
    for number, ids in enumerate((one, two)):
        for module, optimizers in arms:
            torch.manual_seed(number)
            module.weight_step(Batch(ids.int(), labels), optimizers)
        states.append([weights_of(module).detach().clone() for module, _ in arms])
    (sparse_first, dense_first), (sparse_second, dense_second) = states
    torch.testing.assert_close(sparse_first, dense_first)
    left = torch.tensor([offset + row for offset in SCHEMA.first_rows.tolist() for row in range(3)])
    elsewhere = torch.ones(SCHEMA.num_rows, dtype=torch.bool).index_fill(0, left, False)
    torch.testing.assert_close(sparse_second[elsewhere], dense_second[elsewhere])
    assert torch.equal(sparse_second[left], sparse_first[left])
    assert (dense_second[left] != dense_first[left]).all()


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 ratings in the files of MovieLens-1M; even movies are liked."""
    folder = tmp_path_factory.mktemp("ml-1m")
    rng = np.random.default_rng(0)
    users, movies = rng.integers(1, 41, 3000), rng.integers(1, 31, 3000)
    stars = np.where((movies % 2 == 0) ^ (rng.random(3000) < 0.2), 5, 2)
    lines = (f"{u}::{m}::{s}::{t}" for t, (u, m, s) in enumerate(zip(users, movies, stars, strict=True)))
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    (folder / "movies.dat").write_text("".join(f"{m}::M (19{m + 50})::Drama|War\n" for m in range(1, 31)))
    (folder / "users.dat").write_text("".join(f"{u}::F::25::{u % 5}::55455\n" for u in range(1, 41)))
    return folder


@pytest.fixture(scope="module")
def encoded(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    return optimisers.prepare_data(optimisers.params(str(ratings)), tmp_path_factory.mktemp("work"))


def of(encoded: Encoded, **retrain: object) -> Experiment:
    return Experiment(optimisers.params(**retrain), encoded)


def test_both_arms_of_a_seed_start_alike_and_see_the_same_batches(encoded: Encoded) -> None:
    """Without learning, the AUC depends only on the initial weights and the batches (BatchNorm's statistics)."""

    def still(arm: str, seed: int) -> tuple[float, float]:
        found = optimisers.train(arm, of(encoded, epochs=1, batch_size=300, lr=0.0), seed)
        return found["val auc"], found["test auc"]

    assert still("row-sparse", 0) == still("dense", 0) != still("dense", 1)


def test_optimisers_are_compared_seed_by_seed(encoded: Encoded) -> None:
    found = optimisers.compare(of(encoded, seeds=[0, 1], epochs=3, batch_size=200))
    cells = {(cell["seed"], cell["arm"]): cell for cell in found["cells"]}
    for part in ("val", "test"):
        by_seed = [cells[s, "row-sparse"][f"{part} auc"] - cells[s, "dense"][f"{part} auc"] for s in (0, 1)]
        assert found["differences"][part]["mean"] == pytest.approx(np.mean(by_seed))
        assert found["differences"][part]["seed_sd"] == pytest.approx(np.std(by_seed, ddof=1))
    assert all(cell["val auc"] > 0.7 for cell in found["cells"])
    assert found["targets"][0]["reached"] == pytest.approx(found["differences"]["test"]["mean"])
    assert found["targets"][0]["at_least"] == -0.0005
    said = optimisers.table(json.loads(json.dumps(found)))
    assert said.startswith("## ") and "\n| row-sparse minus dense | " in said


@pytest.mark.parametrize(
    ("low", "says"),
    [
        (-0.001, "includes 0. A loss of more than 0.0005 is not excluded by so few seeds."),
        (-0.0004, "includes 0. A loss of more than 0.0005 is excluded."),
        (0.001, "does not include 0. A loss of more than 0.0005 is excluded."),
    ],
)
def test_the_table_says_what_the_interval_of_the_difference_leaves_open(low: float, says: str) -> None:
    each = {"mean": 0.8, "sd": 0.001}
    results = {
        "settings": {"dim": 16, "lr": 0.003, "seeds": [0, 1], "epochs": 3},
        "arms": {arm: {"val": each, "test": each} for arm in optimisers.ARMS},
        "differences": {part: {"mean": 0.002, "interval": [low, 0.005]} for part in ("val", "test")},
    }
    assert f"on test {says}" in optimisers.table(results)


def test_test_rows_are_predicted_with_the_weights_of_the_best_epoch(encoded: Encoded) -> None:
    def trained(epochs: int) -> dict[str, float]:
        return optimisers.train("dense", of(encoded, epochs=epochs, batch_size=200, patience=None, lr=0.1), 0)

    whole = trained(8)
    best = int(np.argmax([entry["auc"] for entry in whole["history"]]))
    assert best < 7, "the last epoch must not be the best, or nothing is shown"
    assert trained(best + 1)["test auc"] == whole["test auc"]


def test_data_that_are_not_there_are_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["optimisers", "--data", str(tmp_path / "nowhere")])
    with pytest.raises(
        SystemExit, match=r"^optimisers: .*nowhere.*; name the published files of MovieLens-1M with --data$"
    ):
        optimisers.main()
