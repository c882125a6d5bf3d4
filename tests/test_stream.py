"""A stream: its ids, what is known before what, popularity, bytes of what is chosen, and the whole stage."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.backbones.fm import Backbone
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost
from pipeline.embeddings.popularity import BUCKETS, ByPopularity, bucket_of, rule
from pipeline.encoding.encode import as_stream
from pipeline.models.model import CTRModel
from pipeline.sources.raw import write_raw
from pipeline.sources.source import Source
from pipeline.training.prequential import prequential, seen_before
from tests.project import Project

SCHEMA = Schema((Field("user", 40), Field("movie", 25), Field("genres", 8, width=2)))
DIMS = [1, 2, 4]
ROWS = 300


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(1, n, ROWS) for n in (40, 25, 8, 8)], 1).astype(np.int32)
    ids[::3, 3] = PADDING
    return ids, rng.integers(0, 2, ROWS).astype(np.uint8)


def model(by: str = "controllers", dims: list[int] = DIMS) -> CTRModel:
    torch.manual_seed(0)
    return CTRModel(SCHEMA, ByPopularity(SCHEMA, dims, 4, by), Backbone)


def ran(ids: np.ndarray, labels: np.ndarray, made: CTRModel | None = None, **options) -> dict[str, np.ndarray]:
    made = made or model()
    return prequential(made, ids, labels, **{"batch_size": 50, "lr": 0.05, "arch_lr": 0.01, **options})


def raw(folder: Path, **columns: pa.Array) -> Path:
    fields = {"user": "categorical", "price": "numeric", "tags": "bag"}
    write_raw(Source(fields, [pa.RecordBatch.from_pydict(columns)], "here"), folder / "table.parquet")
    facts = {"fields": fields, "defaults": {"max_bag": 2}, "time": "time" in columns}
    (folder / "raw.json").write_text(json.dumps(facts))
    return folder


COLUMNS = {
    "label": pa.array([1, 0, 0, 1], pa.uint8()),
    "user": pa.array(["ann", "bob", None, "ann"]),
    "price": pa.array([1, 30, 1, None], pa.int32()),
    "tags": pa.array([["x", "y"], ["z", "x", "y"], [], ["y"]]),
}


def test_rows_come_in_the_order_of_time_and_values_get_their_ids_as_they_appear(tmp_path: Path) -> None:
    schema, ids, labels = as_stream(raw(tmp_path, **COLUMNS, time=pa.array([20, 10, 30, 10], pa.int64())))
    assert labels.tolist() == [0, 1, 1, 0]  # bob, ann, ann, missing
    assert ids[:, 0].tolist() == [1, 2, 2, 3]
    assert ids[:, 1].tolist() == [1, 2, 3, 3]
    assert ids[:, 2:].tolist() == [[1, 2], [3, PADDING], [2, 3], [0, PADDING]]  # two slots: of bob's tags z and x
    assert [(field.name, field.cardinality, field.width) for field in schema.fields] == [
        ("user", 4, 1),
        ("price", 4, 1),
        ("tags", 4, 2),
    ]


def test_without_a_time_rows_come_as_they_are(tmp_path: Path) -> None:
    _, ids, labels = as_stream(raw(tmp_path, **COLUMNS))
    assert labels.tolist() == [1, 0, 0, 1] and ids[:, 0].tolist() == [1, 2, 3, 1]


def test_buckets_of_popularity_are_powers_of_two() -> None:
    counts = torch.tensor([0, 1, 2, 3, 6, 7, 2**15 - 2, 2**15 - 1, 10**9])
    assert bucket_of(counts).tolist() == [0, 1, 1, 2, 2, 3, 14, 15, 15]


def test_the_rule_made_by_hand_never_gives_a_more_popular_value_fewer_dimensions() -> None:
    for candidates in (1, 2, 3, 5, 6):
        made = rule(candidates)
        assert made.shape == (BUCKETS, candidates) and bool((made.sum(1) == 1).all())
        chosen = made.argmax(1).tolist()
        assert chosen == sorted(chosen) and chosen[0] == 0 and chosen[10:] == [candidates - 1] * 6


def test_how_often_a_value_was_seen_before_is_counted_row_by_row() -> None:
    column = np.random.default_rng(0).integers(0, 7, 200)
    expected = [int((column[:i] == value).sum()) for i, value in enumerate(column)]
    assert seen_before(column).tolist() == expected


@pytest.mark.parametrize("by", ["controllers", "equal", "rule"])
def test_what_is_predicted_knows_nothing_of_its_own_label_nor_of_later_rows(by: str) -> None:
    ids, labels = draw()
    before = ran(ids, labels, model(by))["logits"]
    other_ids, other_labels = ids.copy(), labels.copy()
    other_labels[100:] = 1 - labels[100:]
    other_ids[150:] = draw(1)[0][150:]
    after = ran(other_ids, other_labels, model(by))["logits"]
    np.testing.assert_array_equal(before[:150], after[:150])  # those up to 150 were predicted before any other label
    assert not np.allclose(before[150:], after[150:])


def test_a_row_s_prediction_does_not_depend_on_the_other_rows_of_its_batch() -> None:
    ids, labels = draw()
    before = ran(ids, labels)["logits"]
    other = ids.copy()
    other[251:] = draw(1)[0][251:]  # the rest of the last batch
    np.testing.assert_allclose(before[250], ran(other, labels)["logits"][250], rtol=1e-4)


def test_counters_go_on_to_the_end_and_new_values_start_at_none() -> None:
    ids, labels = draw()
    made = model()
    ran(ids, labels, made)
    counts = made.embedding.counts.numpy()
    for f, slots in enumerate(([0], [1], [2, 3])):
        first, n = SCHEMA.first_rows[f], SCHEMA.cardinalities[f]
        flat = ids[:, slots][ids[:, slots] != PADDING]
        assert counts[first : first + n].tolist() == np.bincount(flat, minlength=n).tolist()


def test_controllers_step_on_a_batch_before_the_weights_have_seen_it() -> None:
    """With weights that do not move, both orders are one; with weights that do, the step is that of the old ones."""
    ids, labels = draw()
    ids, labels = ids[:50], labels[:50]
    moved, still = model(), model()
    for made in (moved, still):
        with torch.no_grad():
            for parameter in made.embedding.controllers.parameters():
                parameter.add_(0.1)
    ran(ids, labels, moved, lr=0.5)
    ran(ids, labels, still, lr=0.0)
    for a, b in zip(moved.embedding.arch_parameters(), still.embedding.arch_parameters(), strict=True):
        torch.testing.assert_close(a, b)
    single = model()
    start = [p.clone() for p in single.embedding.arch_parameters()]
    ran(ids, labels, single, level="single")
    assert any(not torch.equal(a, b) for a, b in zip(start, single.embedding.arch_parameters(), strict=True))


@pytest.mark.parametrize(("by", "hard"), [("controllers", True), ("rule", False)])
def test_of_what_is_chosen_only_the_chosen_slices_are_paid_for_and_needed(by: str, hard: bool) -> None:
    ids, labels = draw()
    made = model(by)
    ran(ids, labels, made)
    embedding = made.embedding.eval()
    with torch.no_grad():
        for parameter in embedding.arch_parameters():
            parameter.copy_(torch.randn(parameter.shape))
    embedding.hard = hard
    place = embedding.weights().argmax(2)[embedding.fields, bucket_of(embedding.counts)]
    assert len(place.unique()) > 1
    widths = [DIMS[t] for t in place.tolist()]
    size = cost(embedding.packed())
    assert size.params_by_kind["table"] == sum(widths)
    assert size.params_by_kind["counters"] == SCHEMA.num_rows
    occ = Lookup(SCHEMA)(torch.from_numpy(ids))
    with torch.no_grad():
        expected = embedding(occ)
        for row, t in enumerate(place.tolist()):
            begin = sum(DIMS[:t])
            kept = embedding.slices.table.weight[row, begin : begin + DIMS[t]].clone()
            embedding.slices.table.weight[row] = 7.0
            embedding.slices.table.weight[row, begin : begin + DIMS[t]] = kept
        torch.testing.assert_close(embedding(occ), expected)


def test_soft_weights_pay_for_all_slices_controllers_and_counters() -> None:
    made = model()
    size = cost(made.embedding.packed())
    assert size.params_by_kind["table"] == SCHEMA.num_rows * sum(DIMS)
    assert size.params_by_kind["counters"] == SCHEMA.num_rows
    assert size.params_by_kind["controller"] == sum(p.numel() for p in made.embedding.arch_parameters())
    assert "counters" not in cost(model("equal", [4]).embedding.packed()).params_by_kind


def test_the_stage_compares_all_models_along_the_stream(tmp_path: Path) -> None:
    changes = {"dims": [1, 2], "seeds": [0, 1], "windows": 4, "batch_size": 100, "rows": 700}
    given = {f"stream__{name}": value for name, value in changes.items()}
    project = Project(tmp_path, dataset__options={"rows": 800}, **given).run("ingest", "stream")
    folder = project.folder / "artifacts/stream"
    with (folder / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    arms = ["fixed 1", "fixed 2", "equal weights", "popularity rule", "joint", "AutoEmb", "AutoEmb, hard"]
    assert [(row["seed"], row["model"]) for row in table] == [(seed, arm) for seed in "01" for arm in arms]
    assert all(row["rows"] == "700" and 0 < float(row["auc"]) < 1 for row in table)
    size = {row["model"]: int(row["bytes"]) for row in table}
    assert size["fixed 1"] < size["AutoEmb, hard"] < size["AutoEmb"] and size["fixed 2"] < size["equal weights"]
    with (folder / "windows.csv").open() as file:
        windows = list(csv.DictReader(file))
    own = [row for row in windows if row["seed"] == "0" and row["model"] == "AutoEmb"]
    assert [int(row["rows"]) for row in own] == [175] * 4
    losses = [float(row["logloss"]) for row in own]
    assert np.mean(losses) == pytest.approx(float(table[5]["logloss"]), rel=1e-4)
    with (folder / "popularity.csv").open() as file:
        by_seen = [row for row in csv.DictReader(file) if row["seed"] == "0" and row["model"] == "joint"]
    assert len({row["field"] for row in by_seen}) == 2
    for field in {row["field"] for row in by_seen}:
        assert sum(int(row["rows"]) for row in by_seen if row["field"] == field) == 700
    page = (folder / "table.md").read_text()
    assert all(f"| {arm} |" in page for arm in arms)


def test_candidates_out_of_order_are_refused(tmp_path: Path) -> None:
    project = Project(tmp_path, dataset__options={"rows": 300}, stream__dims=[4, 2]).run("ingest")
    assert "stream: dims must be ascending" in project.error("stream")
    assert not (project.folder / "artifacts/stream").exists()
