"""A field's summary is that of its definition, and a useless or dangerous column gets a warning with a remedy."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.encoded import Labels
from pipeline.data.split import PARTS, Split
from pipeline.encoding import tally
from pipeline.encoding.counting import Sketch
from pipeline.encoding.encode import encode
from pipeline.encoding.fields import lines, part_warnings
from pipeline.sources.raw import write_raw
from pipeline.sources.source import BAG, CATEGORICAL, NUMERIC, BadData, Source
from pipeline.workflow.params import Encode

SPLIT = {"by": "random", "train": 0.6, "arch": 0.1, "val": 0.2, "test": 0.1}
ROWS = 2000


def encoded(folder, columns, kinds, **settings):
    """The record of schema.json of columns, with labels that depend on no column if none are given."""
    rng = np.random.default_rng(1)
    columns = {"label": pa.array(rng.integers(0, 2, ROWS), pa.uint8()), **columns}
    (folder / "raw").mkdir(parents=True)
    source = Source(kinds, [pa.RecordBatch.from_pydict(columns)], "the log")
    (folder / "raw/raw.json").write_text(json.dumps(write_raw(source, folder / "raw/table.parquet")))
    return encode(folder / "raw", folder / "encoded", Encode.model_validate({"split": SPLIT, **settings}))


def rows_of(folder, part, slots):
    """Pairs (ids of one row without padding, label)."""
    split = Split.load(folder / "encoded", part)
    ids, labels = split.slice(0, len(split))
    return [(row[row >= 0], label) for row, label in zip(ids[:, slots], labels, strict=True)]


def auc_of_pairs(scores, labels):
    """The share of pairs in the right order, ties count half, pair by pair."""
    positive = np.array([score for score, label in zip(scores, labels, strict=True) if label])
    negative = np.array([score for score, label in zip(scores, labels, strict=True) if not label])
    return float(np.mean(np.sign(positive[:, None] - negative[None, :]) / 2 + 0.5))


def test_a_summary_is_that_of_its_definition(tmp_path, monkeypatch):
    monkeypatch.setattr(tally, "BLOCK_ROWS", 50)
    rng = np.random.default_rng(0)
    users, tags = rng.geometric(0.02, ROWS), [list(rng.choice(list("abcdefgh"), 1 + k % 3)) for k in range(ROWS)]
    chance = np.where(users % 2, 0.7, 0.3) + np.array([0.2 * ("a" in row) - 0.2 * ("b" in row) for row in tags])
    columns = {
        "label": pa.array((rng.random(ROWS) < chance).astype(np.uint8)),
        "user": pa.array(users, mask=users == 7),
        "tags": pa.array(tags),
    }
    record = encoded(tmp_path, columns, {"user": CATEGORICAL, "tags": BAG}, min_count=5, max_bag=3)
    known = pq.read_table(tmp_path / "encoded/vocabulary.parquet").to_pylist()
    train = {"user": rows_of(tmp_path, "train", [0]), "tags": rows_of(tmp_path, "train", [1, 2, 3])}
    raw_train = record["rows"]["train"]
    for name, slots in ("user", [0]), ("tags", [1, 2, 3]):
        about, counts = record["summaries"][name], {row["id"]: row["count"] for row in known if row["feature"] == name}
        assert about["ids"] == len(counts) and about["most_frequent"] == max(counts.values()) / raw_train
        for part in ("val", "test"):
            rows = rows_of(tmp_path, part, slots)
            assert about["unknown"][part] == pytest.approx(np.mean([ids[0] == 0 for ids, _ in rows]))
        mean = np.mean([label for _, label in train[name]])

        def share(number, name=name, mean=mean):
            own = [label for ids, label in train[name] if number in ids]
            return (sum(own) + 10 * mean) / (len(own) + 10)

        shares = {number: share(number) for number in range(len(counts) + 1)}
        val = rows_of(tmp_path, "val", slots)
        scores = [max((shares[i] for i in ids), key=lambda one, mean=mean: abs(one - mean)) for ids, _ in val]
        assert about["auc_alone"] == pytest.approx(auc_of_pairs(scores, [label for _, label in val]), abs=1e-12)
        assert about["auc_alone"] > 0.55 and about["warnings"] == []
    assert record["summaries"]["user"]["values"] > record["summaries"]["user"]["ids"] + 20
    assert record["summaries"]["tags"]["values"] == 8


def test_values_that_never_come_in_training_rows_do_not_count(tmp_path):
    times = np.arange(ROWS)
    columns = {"time": pa.array(times), "day": pa.array(times // 100), "five": pa.array(times % 5)}
    record = encoded(tmp_path, columns, {"day": CATEGORICAL, "five": CATEGORICAL}, split={**SPLIT, "by": "time"})
    day, five = record["summaries"]["day"], record["summaries"]["five"]
    assert (day["values"], day["unknown"]) == (12, {"val": 1.0, "test": 1.0}) and five["unknown"]["val"] == 0
    [warning] = day["warnings"]
    assert warning.startswith("100% of the rows of val have no known value") and not five["warnings"]
    assert day["auc_alone"] == 0.5  # all rows have the same id


def test_labels_that_are_numbers_have_no_auc(tmp_path):
    columns = {"label": pa.array(np.linspace(0, 9, ROWS)), "five": pa.array(np.arange(ROWS) % 5)}
    record = encoded(tmp_path, columns, {"five": CATEGORICAL})
    assert record["summaries"]["five"]["auc_alone"] is None and not record["warnings"]
    assert any("–" in line for line in lines(record["summaries"], Path("fields.csv")))


NUMBERS = np.arange(ROWS)
SHARES = np.random.default_rng(4).random(ROWS)
DAYS = [f"2024-03-{1 + n % 28:02}T{n % 24:02}:{n % 60:02}:{n % 59:02}" for n in range(ROWS)]
MOSTLY = np.where(NUMBERS % 100, 0.0, SHARES)


@pytest.mark.parametrize(
    ("column", "kind", "settings", "told"),
    [
        (NUMBERS, CATEGORICAL, {}, r"1,\d{3} values in 1,\d{3} training rows are \(nearly\) unique, .*; leave it out"),
        ([f"x{n // 2}" for n in range(ROWS)], CATEGORICAL, {"min_count": 3}, "have no known value.*lower encode.min_c"),
        (["x"] * ROWS, CATEGORICAL, {}, "one value in all training rows and tells nothing; leave it out"),
        ([3.5] * ROWS, NUMERIC, {}, "one value in all training rows"),
        ([None] * ROWS, CATEGORICAL, {}, "one value in all training rows"),
        (1.7e9 + 60 * NUMBERS, NUMERIC, {}, "fall into 1 bucket and look like Unix times; give an hour or a weekday"),
        (1_700_000_000_000 + NUMBERS, NUMERIC, {}, "fall into 1 bucket and look like Unix times"),
        (SHARES, NUMERIC, {}, "its numbers fall into 1 bucket; set encode.numeric to quantiles in params.yaml"),
        (MOSTLY, NUMERIC, {"numeric": "quantiles"}, "fall into 1 bucket; list it under categorical"),
        (1_700_000_000 + NUMBERS, CATEGORICAL, {}, r"\(nearly\) unique and look like Unix times; give an hour"),
        (DAYS, CATEGORICAL, {"min_count": 2}, r"\(nearly\) unique and look like dates; give an hour or a weekday"),
    ],
)
def test_a_column_that_tells_nothing_is_named_with_a_remedy(tmp_path, column, kind, settings, told):
    values = pa.array([None] * ROWS, pa.string()) if column[0] is None else pa.array(column)
    record = encoded(
        tmp_path, {"own": values, "five": pa.array(NUMBERS % 5)}, {"own": kind, "five": CATEGORICAL}, **settings
    )
    [warning] = record["summaries"]["own"]["warnings"]
    assert pa.compute.match_substring_regex(pa.scalar(warning), told).as_py(), warning
    assert not record["summaries"]["five"]["warnings"]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (NUMBERS % 2, NUMERIC),
        ((NUMBERS % 2).astype(float), NUMERIC),
        (100 * SHARES, NUMERIC),
        ([None if n % 3 else "yes" for n in range(ROWS)], CATEGORICAL),
        ([f"2024-03-{1 + n % 9:02}" for n in range(ROWS)], CATEGORICAL),
        ([[f"t{n % 7}"] for n in range(ROWS)], BAG),
    ],
)
def test_a_sound_column_has_no_warning(tmp_path, column, kind):
    assert encoded(tmp_path, {"own": pa.array(column)}, {"own": kind})["summaries"]["own"]["warnings"] == []


def test_a_column_that_knows_the_label_is_probably_a_leak(tmp_path):
    labels = np.random.default_rng(3).integers(0, 2, ROWS)
    columns = {"label": pa.array(labels, pa.uint8()), "paid": pa.array(np.where(labels, "yes", "no"))}
    columns["tags"] = pa.array([["a", f"t{n % 3}", *(["paid"] if label else [])] for n, label in enumerate(labels)])
    record = encoded(tmp_path, columns, {"paid": CATEGORICAL, "tags": BAG})
    for name in ("paid", "tags"):
        [warning] = record["summaries"][name]["warnings"]
        assert "predicts the label almost alone (AUC 1.000 on val)" in warning and "leave it out unless" in warning


def test_copies_are_found_and_fields_that_only_look_alike_are_not(tmp_path):
    rng = np.random.default_rng(5)
    own = rng.integers(0, 9, ROWS)
    moved = np.roll(own, 1)  # the same values, each as often but for the parts, in other rows
    bags = [[f"t{n}", f"t{n + 1}"] for n in own]
    columns = {"a": own, "b": own, "moved": moved, "c": own, "bag": bags, "bag2": bags}
    kinds = {name: BAG if "bag" in name else CATEGORICAL for name in columns}
    record = encoded(tmp_path, {name: pa.array(values) for name, values in columns.items()}, kinds)
    told = {name: about["warnings"] for name, about in record["summaries"].items()}
    assert [name for name, texts in told.items() if texts] == ["b", "c", "bag2"]
    assert told["b"] == told["c"] == ["a copy of 'a': both have the same values in all rows; leave one of them out"]


def test_columns_with_equal_counts_that_differ_in_two_training_rows_are_no_copies(tmp_path):
    own = pa.array(NUMBERS % 4)
    in_train = np.sort(training_rows(tmp_path / "rows"))
    other = NUMBERS % 4
    first, second = next(pair for pair in itertools.pairwise(in_train) if pair[1] == pair[0] + 1)
    other[[first, second]] = other[[second, first]]
    assert len(in_train) > 1000 and (other != NUMBERS % 4).sum() == 2
    kinds = {"own": CATEGORICAL, "other": CATEGORICAL}
    record = encoded(tmp_path / "b", {"own": own, "other": pa.array(other)}, kinds)
    assert record["summaries"]["other"]["warnings"] == []


def training_rows(folder):
    """Numbers of the training rows, from a column that counts the rows and keeps every value."""
    encoded(folder, {"row": pa.array(NUMBERS)}, {"row": CATEGORICAL}, min_count=1)
    known = pq.read_table(folder / "encoded/vocabulary.parquet")["value"].to_pylist()
    return [int(value) for value in known]


# --- many fields


def test_of_many_fields_only_those_with_warnings_are_printed(tmp_path):
    rng = np.random.default_rng(0)
    columns = {f"f{n}": pa.array(rng.integers(0, 5, ROWS)) for n in range(45)} | {"id": pa.array(NUMBERS)}
    record = encoded(tmp_path, columns, dict.fromkeys(columns, CATEGORICAL))
    shown = lines(record["summaries"], Path("fields.csv"))
    assert [line.split()[0] for line in shown] == ["field", "id", "45", "encode:"]
    assert shown[2] == "45 fields have no warning; fields.csv has all"
    few = lines(dict(list(record["summaries"].items())[:40]), Path("fields.csv"))
    assert len(few) == 41 and len({len(line) for line in few}) == 1
    with (tmp_path / "encoded/fields.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["field"] for row in table] == list(columns)
    for row in table:
        about = record["summaries"][row["field"]]
        assert float(row["unknown_val"]) == about["unknown"]["val"] and float(row["auc_alone"]) == about["auc_alone"]
        assert row["warnings"] == "; ".join(about["warnings"])


@pytest.mark.parametrize("number", [10, 5_000, 3_000_000])
def test_a_sketch_estimates_the_number_of_values(number):
    sketch = Sketch()
    values = pa.array(np.arange(number) * 7 + 3)
    sketch.add(pa.table({"value": values, "count": pa.array(np.ones(number, dtype=np.int64))}))
    assert sketch.distinct() == pytest.approx(number, rel=0.01)
    assert len(str(sketch.distinct()).rstrip("0")) <= 3


# --- parts


def part_labels(rows, mean, part="val"):
    usual = dict.fromkeys(PARTS, Labels(5000, 0.5, 0, 1, True))
    return {**usual, part: Labels(rows, mean, 0, 1, True)}


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_that_is_too_small_to_judge_by_is_named(part):
    assert part_warnings(part_labels(50, 0.2, part)) == []
    for rows, mean, rarer in (49, 0.5, 24), (1000, 0.009, 9), (1000, 0.991, 9):
        [warning] = part_warnings(part_labels(rows, mean, part))
        assert warning.startswith(f"{part} has {rows:,} rows, {rarer} of the rarer label, too few to judge by; raise ")


def test_a_part_with_one_of_two_labels_is_refused(tmp_path):
    columns = {"label": pa.array((NUMBERS % 2) | (NUMBERS >= 1800), pa.uint8()), "time": pa.array(NUMBERS)}
    columns["five"] = pa.array(NUMBERS % 5)
    with pytest.raises(BadData, match=r"all 200 rows of part 'test' have the label 1, .*; raise encode.split.test in"):
        encoded(tmp_path, columns, {"five": CATEGORICAL}, split={**SPLIT, "by": "time"})
    assert not (tmp_path / "encoded").exists()
