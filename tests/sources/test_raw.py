"""What is written of a source: a table that does not depend on the batches, and a record; or what is wrong with it."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.sources import raw
from pipeline.sources.raw import write_raw
from pipeline.sources.source import BadData, Interacting, Source

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
    assert record["label"] == {"type": "uint8", "mean": 0.5}
    assert record["fields"] == FIELDS
    assert record["time"] is True
    assert record["oracle"] is False
    assert record["facts"] == {"ranks": [1, 2]}
    assert record["defaults"] == {"min_count": 5}
    table = pq.read_table(tmp_path / "table.parquet")
    assert table.column_names == ["label", "user", "age", "tags", "time"]
    assert table["tags"].to_pylist()[:3] == [[], ["a"], ["a", "b"]]


def test_the_file_does_not_depend_on_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "GROUP_ROWS", 7)
    whole = rows(40)
    sums = {
        written(tmp_path, [whole.slice(i, step) for i in range(0, 40, step)])["sha256"] for step in (1, 5, 7, 16, 40)
    }
    assert len(sums) == 1
    assert pq.ParquetFile(tmp_path / "table.parquet").num_row_groups == 6


def test_labels_may_be_any_finite_number(tmp_path):
    numbers = pa.array([-2.5, 0, 1e-9, 3e38, 7, 7])
    oracle = pa.array([-3.0, 0, 0, 1e300, 7, 8])
    record = written(tmp_path, [rows(6, label=numbers, oracle=oracle)])
    assert record["label"] == {"type": "float64", "mean": sum(numbers.to_pylist()) / 6}
    table = pq.read_table(tmp_path / "table.parquet")
    assert table["label"].to_pylist() == numbers.to_pylist() and table["oracle"].to_pylist() == oracle.to_pylist()


def test_the_mean_of_the_labels_does_not_depend_on_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "GROUP_ROWS", 7)
    whole = rows(40, label=pa.array([0.1 * i * (-1) ** i for i in range(40)]))
    means = {
        written(tmp_path, [whole.slice(i, step) for i in range(0, 40, step)])["label"]["mean"]
        for step in (1, 5, 16, 40)
    }
    assert len(means) == 1


def test_a_breach_of_the_contract_is_named(tmp_path):
    binary, number = pa.array([0, 1, 1, 0], pa.uint8()), pa.array([0.5, 1, 2, 0])
    for columns, message in (
        ({"label": pa.array([0, 1, 2, 0], pa.uint8())}, r"the log: column 'label', row 3: must be 0 or 1, got '2'"),
        ({"label": pa.array([0, 1, None, 0], pa.uint8())}, r"column 'label', row 3: must be 0 or 1, got 'None'"),
        ({"label": pa.array([0, 1, 1, 0])}, r"column 'label' must be uint8 or float64, got int64"),
        (
            {"label": pa.array([0, 1.5, None, 0])},
            r"column 'label', row 3: must be a number within ±3.4e\+38, got 'None'",
        ),
        ({"label": pa.array([0, 1.5, float("nan"), 0])}, r"column 'label', row 3: must be a number .*'nan'"),
        ({"label": pa.array([0, float("-inf"), 1, 0])}, r"column 'label', row 2: must be a number .*'-inf'"),
        ({"label": pa.array([0, 1, 1, 1e39])}, r"column 'label', row 4: must be a number .*'1e\+39'"),
        (
            {"age": pa.array([1, 2, float("inf"), 3])},
            r"column 'age', row 3: must be finite, got 'inf'; correct the value",
        ),
        ({"age": pa.array(["1", "2", "3", "4"])}, r"column 'age' must be integers or floats, got string"),
        (
            {"tags": pa.array(["a", "b", "c", "d"])},
            r"column 'tags' must be lists of strings, got string; see `Source` in",
        ),
        ({"user": pa.array([1.5, 2, 3, 4])}, r"column 'user' must be strings or integers, got double"),
        ({"time": pa.array([1, 2, None, 4], pa.int64())}, r"column 'time', row 3: must not be missing"),
        (
            {"oracle": pa.array([0.1, 1.5, 0.2, 0.3])},
            r"column 'oracle', row 2: must be a number from 0 to 1, got '1.5'",
        ),
        (
            {"oracle": pa.array([0.1, 1.5, float("nan"), 0]), "label": number},
            r"'oracle', row 3: must be a finite number",
        ),
        (
            {"label": pc.cast(pa.array([1] * 4), pa.uint8())},
            r"all 4 labels are 1, .*check which column is the label, and",
        ),
        ({"label": pa.array([2.5] * 4)}, r"all 4 labels are 2.5, so there is nothing to predict; check which .*label$"),
    ):
        with pytest.raises(BadData, match=message):
            written(tmp_path, [rows(4, **{"label": binary, **columns})])
    with pytest.raises(BadData, match=r"no column 'tags'; there are \['label', 'user', 'age'\]"):
        written(tmp_path, [rows(4).select(["label", "user", "age"])])
    for nothing in ([], [rows(0)]):
        with pytest.raises(BadData, match=r"the log: there are no rows; give data with"):
            written(tmp_path, nothing)


BOUGHT = Interacting({"user": "user", "item": "item"}, "user", "item", targets=("buy",))
KEYS = {"user": "categorical", "item": "categorical"}


def bought(**columns):
    plain = {"user": pa.array(["a", "b"]), "item": pa.array([7, 8]), "event": pa.array(["buy", "return"])}
    return pa.RecordBatch.from_pydict(
        {name: column for name, column in (plain | columns).items() if column is not None}
    )


def test_interactions_have_roles_instead_of_a_label(tmp_path):
    more = {"time": pa.array([1, 2]), "basket": pa.array(["x", "x"]), "test": pa.array([0, 1], pa.uint8())}
    record = written(tmp_path, [bought(**more)], KEYS, interactions=BOUGHT)
    assert record["label"] is None and record["rows"] == 2 and record["time"] is True
    assert record["interactions"] == {
        "roles": {"user": "user", "item": "item"},
        "keys": {"user": "user", "item": "item"},
        "targets": ["buy"],
        "event": True,
        "basket": True,
        "test": True,
    }
    table = pq.read_table(tmp_path / "table.parquet")
    assert table.column_names == ["user", "item", "event", "basket", "test", "time"]


def test_interactions_need_no_more_than_a_user_and_an_item(tmp_path):
    about = Interacting({"user": "user", "item": "item"}, "user", "item")
    record = written(tmp_path, [bought(event=None)], KEYS, interactions=about)
    optional = {name: record["interactions"][name] for name in ("targets", "event", "basket", "test")}
    assert optional == {"targets": None, "event": False, "basket": False, "test": False}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": pa.array(["a", ""])}, "column 'user', row 2: must not be missing or empty, got ''"),
        ({"item": pa.array([None, 8])}, "column 'item', row 1: must not be missing or empty, got 'None'"),
        ({"event": pa.array(["buy", None])}, "column 'event', row 2: must not be missing or empty"),
        ({"basket": pa.array(["", "x"])}, "column 'basket', row 1: must not be missing or empty"),
        ({"test": pa.array([0, 2], pa.uint8())}, "column 'test', row 2: must be 0 or 1, got '2'"),
        ({"test": pa.array([0, 1])}, "column 'test' must be uint8, got int64"),
        ({"time": pa.array([1, None])}, "column 'time', row 2: must not be missing"),
        ({"event": None}, "no column 'event'"),
        ({"basket": pa.array(["x", None])}, "column 'basket', row 2: must not be missing or empty"),
        ({"event": pa.array(["sell", "return"])}, r"targets must be types .* occur, return, sell, got \['buy'\]; corr"),
        ({"test": pa.array([0, 0], pa.uint8())}, "has no test rows, and 2 training rows"),
        ({"test": pa.array([1, 1], pa.uint8())}, "has no training rows, and 2 test rows"),
    ],
)
def test_interactions_that_break_the_contract_are_refused(tmp_path, columns, message):
    with pytest.raises(BadData, match=message):
        written(tmp_path, [bought(**columns)], KEYS, interactions=BOUGHT)
