"""The rows of a log in the order of time, and ids that nothing later decides."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.schema import PADDING
from pipeline.encoding.encode import as_stream
from pipeline.sources.raw import write_raw
from pipeline.sources.source import Source
from pipeline.training.prequential import seen_before

COLUMNS = {
    "label": pa.array([1, 0, 0, 1], pa.uint8()),
    "user": pa.array(["ann", "bob", None, "ann"]),
    "price": pa.array([1, 30, 1, None], pa.int32()),
    "tags": pa.array([["x", "y"], ["z", "x", "y"], [], ["y"]]),
}


def raw(folder: Path, **columns: pa.Array) -> Path:
    fields = {"user": "categorical", "price": "numeric", "tags": "bag"}
    source = Source(fields, [pa.RecordBatch.from_pydict(columns)], "here", {"max_bag": 2})
    (folder / "raw.json").write_text(json.dumps(write_raw(source, folder / "table.parquet")))
    return folder


def test_rows_follow_their_time_and_a_value_gets_its_id_when_it_first_appears(tmp_path: Path) -> None:
    schema, ids, labels, cut = as_stream(raw(tmp_path, **COLUMNS, time=pa.array([20, 10, 30, 10], pa.int64())))
    assert cut == {"tags": {"values": 1, "rows": 1}}
    assert labels.tolist() == [0, 1, 1, 0]  # bob, ann, ann, missing
    assert ids[:, 0].tolist() == [1, 2, 2, 3]
    assert ids[:, 1].tolist() == [1, 2, 3, 3]
    assert ids[:, 2:].tolist() == [[1, 2], [3, PADDING], [2, 3], [0, PADDING]]  # bob has two slots, for z and x
    assert [(field.name, field.cardinality, field.width) for field in schema.fields] == [
        ("user", 4, 1),
        ("price", 4, 1),
        ("tags", 4, 2),
    ]


def test_rows_without_a_time_keep_their_order(tmp_path: Path) -> None:
    _, ids, labels, _ = as_stream(raw(tmp_path, **COLUMNS))
    assert labels.tolist() == [1, 0, 0, 1] and ids[:, 0].tolist() == [1, 2, 3, 1]


def test_a_row_counts_the_earlier_rows_with_its_value() -> None:
    column = np.random.default_rng(0).integers(0, 7, 200)
    expected = [int((column[:i] == value).sum()) for i, value in enumerate(column)]
    assert seen_before(column).tolist() == expected
