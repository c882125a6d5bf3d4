"""What the benchmarks of limits and of optimisers compare differs in what it is said to differ in alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import limits, models, optimisers, shapes
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.encoding.encode import Settings
from pipeline.training.weights import LitCTR

SCHEMA = Schema((Field("a", 40), Field("b", 30), Field("c", 20)))
BATCH, ROWS = 16, 25  # U


def plain(seed: int = 0) -> LitCTR:
    torch.manual_seed(seed)
    return models.plain(SCHEMA, models.split(shapes.batches(SCHEMA, BATCH, 1)), dim=4)


def tables(module: LitCTR) -> list[torch.Tensor]:
    model = module.model
    return [model.embedding.tables["4"].weight, model.backbone.first_order.table.weight]


def test_rows_in_order_are_the_occurrences_that_a_lookup_of_ordered_ids_finds() -> None:
    ids = (torch.arange(48) * 25 // 48)[:, None]
    expected = Lookup(Schema((Field("only", 25),)))(ids.int())
    found = limits.InOrder(25, 48, 1)(ids)
    for field in dataclasses.fields(expected):
        wanted, got = getattr(expected, field.name), getattr(found, field.name)
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(got, wanted, msg=field.name)
        else:
            assert got == wanted, field.name


def test_rows_in_order_have_the_fields_of_the_batch_and_are_no_more_than_its_occurrences() -> None:
    found = limits.InOrder(ROWS, BATCH, 3)(torch.zeros(BATCH, 3))
    assert found.shape == (BATCH, 3) and found.ends[-1] == ROWS and len(found.ends) == 3
    assert found.mass().sum() == BATCH * 3 and found.mass().min() >= 1
    with pytest.raises(ValueError, match="48 occurrences have no 49 distinct rows"):
        limits.InOrder(49, BATCH, 3)


def test_a_step_in_order_trains_the_first_rows_and_no_others() -> None:
    module = limits.in_order(plain(), ROWS, BATCH)
    optimizers, before = module.configure_optimizers(), [t.detach().clone() for t in tables(module)]
    for batch in shapes.batches(SCHEMA, BATCH, 2):
        module.weight_step(batch, optimizers)
    for old, new in zip(before, tables(module), strict=True):
        assert (old != new)[:ROWS].any(1).all() and torch.equal(old[ROWS:], new[ROWS:])


def test_the_step_on_one_block_computes_what_the_step_in_order_does() -> None:
    ordered, block = limits.in_order(plain(), ROWS, BATCH), limits.on_one_block(plain(), ROWS, BATCH)
    ours, dense = ordered.configure_optimizers(), [torch.optim.Adam(block.weights(), lr=block.lr, fused=True)]
    for number, batch in enumerate(shapes.batches(SCHEMA, BATCH, 3)):
        for module, optimizers in ((ordered, ours), (block, dense)):
            torch.manual_seed(number)  # of the dropout
            module.weight_step(batch, optimizers)
    for whole, cut in zip(tables(ordered), tables(block), strict=True):
        assert cut.shape[0] == ROWS and not cut.grad.is_sparse
        torch.testing.assert_close(whole[:ROWS], cut, rtol=1e-4, atol=1e-6)


def test_the_least_bytes_are_six_passes_over_the_touched_rows_of_both_tables() -> None:
    assert limits.least_bytes(plain(), ROWS) == 6 * 4 * ROWS * (4 + 1)


def test_limits_are_measured_of_every_step_and_said_as_multiples() -> None:
    found = limits.measure(shapes.criteo(values=500, fields=5), 40, rounds=2, big=1 << 16)
    said = limits.table(json.loads(json.dumps(found)))
    assert set(found["times limit"]) == {limits.IN_ORDER, limits.BLOCK, limits.MLP, "least"}
    assert found["memory"][limits.COPY]["times limit"] == 1 and said.startswith("## ")
    for name in (*found["steps"], *found["memory"]):
        assert f"\n| {name} | " in said
    assert f"{found['times limit'][limits.BLOCK]:.2f} x its limit" in said


def test_dense_and_row_sparse_steps_differ_in_rows_that_a_later_batch_leaves_alone_only() -> None:
    sparse = plain()
    dense = optimisers.DenseCTR(plain().model, sparse.validation, sparse.planned)
    one, two = (torch.tensor([[v, v, v]] * BATCH, dtype=torch.int32) + torch.arange(BATCH)[:, None] % 3 for v in (0, 5))
    labels = (torch.arange(BATCH) % 2).float()
    arms = [(module, module.configure_optimizers()) for module in (sparse, dense)]
    states = []
    for number, ids in enumerate((one, two)):
        for module, optimizers in arms:
            torch.manual_seed(number)
            module.weight_step((ids.int(), labels), optimizers)
        states.append([tables(module)[0].detach().clone() for module, _ in arms])
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
def encoded(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    split = {"by": "random", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
    return optimisers._encoded(ratings, tmp_path_factory.mktemp("work"), Settings(split=split))


def test_arms_of_a_seed_start_alike_and_see_the_same_batches(encoded: Path) -> None:
    """Without learning, AUC depends on the initial weights and on the batches (BatchNorm's statistics) alone."""

    def still(arm: str, seed: int) -> tuple[float, float]:
        found = optimisers.train(arm, encoded, seed, 1, batch_size=300, patience=None, lr=0.0)
        return found["val auc"], found["test auc"]

    assert still("row-sparse", 0) == still("dense", 0) != still("dense", 1)


def test_optimisers_are_compared_seed_by_seed(encoded: Path) -> None:
    found = optimisers.compare(encoded, [0, 1], 3, batch_size=200, patience=2)
    cells = {(cell["seed"], cell["arm"]): cell for cell in found["cells"]}
    for part in ("val", "test"):
        by_seed = [cells[s, "row-sparse"][f"{part} auc"] - cells[s, "dense"][f"{part} auc"] for s in (0, 1)]
        assert found["differences"][part]["values"] == pytest.approx(by_seed)
    assert all(cell["val auc"] > 0.7 for cell in found["cells"])
    assert found["targets"][0]["reached"] == pytest.approx(found["differences"]["test"]["mean"])
    assert found["targets"][0]["at_least"] == -0.0005
    said = optimisers.table(json.loads(json.dumps(found)))
    assert said.startswith("## ") and "\n| row-sparse minus dense | " in said


@pytest.mark.parametrize(
    ("low", "says"),
    [
        (-0.001, "includes 0; a loss of more than 0.0005 is not excluded by so few seeds."),
        (-0.0004, "includes 0; a loss of more than 0.0005 is excluded."),
        (0.001, "does not include 0; a loss of more than 0.0005 is excluded."),
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


def test_test_rows_are_predicted_with_the_weights_of_the_best_epoch(encoded: Path) -> None:
    def trained(epochs: int) -> dict[str, Any]:
        return optimisers.train("dense", encoded, 0, epochs, batch_size=200, patience=None, lr=0.1)

    whole = trained(8)
    best = int(np.argmax([entry["auc"] for entry in whole["history"]]))
    assert best < 7, "the last epoch must not be the best, or nothing is shown"
    assert trained(best + 1)["test auc"] == whole["test auc"]


def test_absent_data_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no MovieLens-1M at .*nowhere.*ml-1m\.zip\) with --data"):
        optimisers.run(quick=True, data=tmp_path / "nowhere")
