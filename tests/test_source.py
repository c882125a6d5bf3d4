import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources import raw as source
from pipeline.sources.raw import write_raw
from pipeline.sources.source import BadData, Source

FIELDS = {"user": "categorical", "age": "numeric", "tags": "bag"}


def rows(n, **columns):
    plain = {
        "label": pa.array([i % 2 for i in range(n)], pa.uint8()),
        "user": pa.array([f"u{i % 3}" for i in range(n)]),
        "age": pa.array([None if i % 4 == 0 else float(i) for i in range(n)]),
        "tags": pa.array([["a", "b"][: i % 3] for i in range(n)], pa.list_(pa.string())),
    }
    return pa.RecordBatch.from_pydict(plain | columns)


def written(tmp_path, batches, fields=FIELDS, **rest):
    return write_raw(Source(fields, batches, "the log", **rest), tmp_path / "table.parquet")


def test_the_record_says_what_was_written(tmp_path):
    times = pa.array(range(6), pa.int64())
    record = written(tmp_path, [rows(6, time=times)], facts={"ranks": [1, 2]}, defaults={"min_count": 5})
    assert record["rows"] == 6
    assert record["label_rate"] == 0.5
    assert record["fields"] == FIELDS
    assert record["time"] is True
    assert record["oracle"] is False
    assert record["facts"] == {"ranks": [1, 2]}
    assert record["defaults"] == {"min_count": 5}
    table = pq.read_table(tmp_path / "table.parquet")
    assert table.column_names == ["label", "user", "age", "tags", "time"]
    assert table["tags"].to_pylist()[:3] == [[], ["a"], ["a", "b"]]


def test_the_file_does_not_depend_on_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "GROUP_ROWS", 7)
    whole = rows(40)
    sums = {
        written(tmp_path, [whole.slice(i, step) for i in range(0, 40, step)])["sha256"] for step in (1, 5, 7, 16, 40)
    }
    assert len(sums) == 1
    assert pq.ParquetFile(tmp_path / "table.parquet").num_row_groups == 6


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (rows(4, label=pa.array([0, 1, 2, 0], pa.uint8())), r"the log: column 'label', row 3: must be 0 or 1.*'2'"),
        (rows(4, label=pa.array([0, 1, None, 0], pa.uint8())), r"column 'label', row 3: must be 0 or 1"),
        (rows(4, label=pa.array([0, 1, 1, 0])), r"column 'label' is int64"),
        (rows(4, age=pa.array([1, 2, float("inf"), 3])), r"column 'age', row 3: must be finite.*'inf'"),
        (rows(4, age=pa.array(["1", "2", "3", "4"])), r"column 'age' is string, which does not suit a numeric"),
        (rows(4, tags=pa.array(["a", "b", "c", "d"])), r"column 'tags' is string, which does not suit a bag"),
        (rows(4, user=pa.array([1.5, 2, 3, 4])), r"column 'user' is double"),
        (rows(4, time=pa.array([1, 2, None, 4], pa.int64())), r"column 'time', row 3: must not be missing"),
        (rows(4, oracle=pa.array([0.1, 1.5, 0.2, 0.3])), r"column 'oracle', row 2: must be within 0 and 1.*'1.5'"),
        (rows(4, label=pa.array([1, 1, 1, 1], pa.uint8())), r"all 4 labels are the same, found 1; AUC needs both"),
        (rows(4).select(["label", "user", "age"]), r"no column 'tags'"),
        (rows(0), r"the log: there are no rows"),
    ],
)
def test_a_breach_of_the_contract_is_named(tmp_path, batch, message):
    with pytest.raises(BadData, match=message):
        written(tmp_path, [batch])


def test_fields_have_known_kinds_and_free_names():
    with pytest.raises(BadData, match="no kind 'number'"):
        Source({"age": "number"}, [], "the log")
    with pytest.raises(BadData, match="a field is named 'time', which is taken"):
        Source({"time": "categorical"}, [], "the log")
    with pytest.raises(BadData, match="there is no field"):
        Source({}, [], "the log")
