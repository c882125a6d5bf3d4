"""Raw rows become ids by the definition, whatever the batches, in little memory, and learn from training rows alone."""

import functools
import json
import math
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.encoded import Encoded, Labels
from pipeline.data.schema import PADDING, Schema
from pipeline.data.split import PARTS
from pipeline.datasets import table
from pipeline.encoding import buckets, counting, threads, vocabulary
from pipeline.encoding.encode import as_stream, encode
from pipeline.sources import raw as raw_table
from pipeline.sources.raw import write_raw
from pipeline.sources.source import BadData, Source
from pipeline.workflow.params import Encode

RANDOM = {"by": "random", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
TIME = {**RANDOM, "by": "time"}
FIELDS = {"user": "categorical", "item": "categorical", "age": "numeric", "tags": "bag"}


def settings(split, **rest):
    return Encode.model_validate({"split": split, **rest})


@functools.cache
def plain(n):
    """Columns of n rows."""
    rng = np.random.default_rng(0)
    words = np.array([f"t{i}" for i in range(12)])
    return {
        "label": pa.array(rng.integers(0, 2, n), pa.uint8()),
        "user": pa.array([f"u{i}" if i else None for i in rng.geometric(0.05, n) - 1]),
        "item": pa.array(rng.geometric(0.02, n)),
        "age": pa.array(rng.normal(20, 30, n), mask=rng.random(n) < 0.1),
        "tags": pa.array(
            [None if k == 0 else list(rng.choice(words, k - 1)) for k in rng.integers(0, 6, n)],
            pa.list_(pa.string()),
        ),
        "time": pa.array(rng.integers(0, 10**9, n)),
    }


def batch(n, **columns):
    """`plain` with other columns; None leaves one out."""
    return pa.RecordBatch.from_pydict({name: v for name, v in (plain(n) | columns).items() if v is not None})


def raw(folder, rows, fields=FIELDS, **rest):
    return written(folder, Source(fields, [rows], "the log", **rest))


def written(folder, source):
    folder.mkdir()
    (folder / "raw.json").write_text(json.dumps(write_raw(source, folder / "table.parquet")))
    return folder


def loaded(folder):
    """{part: {array name: array}} and the vocabulary as {field: {value: (count, id)}}."""
    parts = {part: {path.stem: np.load(path) for path in (folder / part).glob("*.npy")} for part in PARTS}
    known = {}
    for row in pq.read_table(folder / "vocabulary.parquet").to_pylist():
        known.setdefault(row["feature"], {})[row["value"]] = (row["count"], row["id"])
    return parts, known


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("split", [RANDOM, TIME], ids=["random", "time"])
@pytest.mark.parametrize("numeric", ["log-square", "quantiles"])
def test_the_result_is_the_same_whatever_the_batches(tmp_path, monkeypatch, split, numeric):
    given = settings(split, numeric=numeric, buckets=7, max_bag=3, seed=3)
    rows = batch(1000)
    if split is TIME:
        exponents = np.random.default_rng(2).uniform(-9, 9, 1000)  # far apart, so that sums are rounded
        rows = rows.set_column(0, "label", pa.array(10**exponents))
    results, values = [], []
    usual = 1 << 17
    for group_rows, batch_rows, rich in ((usual, usual, usual), (usual, usual, usual), (usual, 13, 9), (100, usual, 9)):
        monkeypatch.setattr(raw_table, "GROUP_ROWS", group_rows)
        monkeypatch.setattr(vocabulary, "RICH_VALUES", rich)
        monkeypatch.setattr(counting, "SKETCH_BITS", 4)
        monkeypatch.setattr(counting, "MERGE_ROWS", group_rows)
        monkeypatch.setattr(buckets, "SAMPLE_ROWS", 400)
        place = tmp_path / str(len(results))
        encode(raw(place, rows), place / "encoded", given, batch_rows)
        files = contents(place / "encoded")
        record = json.loads(files.pop("schema.json"))
        del record["raw_sha256"]  # depends on the row groups that this test varies
        table = files.pop("fields.csv"), {name: about.pop("values") for name, about in record["summaries"].items()}
        values.append(table)
        results.append((files, record))
    assert all(result == results[0] for result in results)
    assert values[0] == values[1] and values[2] == values[3] != values[0]  # of rich fields values are estimated
    assert set(results[0][0]) == {"vocabulary.parquet", *(f"{p}/{a}.npy" for p in PARTS for a in ("ids", "labels"))}


@pytest.mark.parametrize("bits", [3, 22], ids=["full of collisions", "roomy"])
def test_rich_fields_are_counted_exactly(tmp_path, monkeypatch, bits):
    monkeypatch.setattr(raw_table, "GROUP_ROWS", 500)
    monkeypatch.setattr(counting, "MERGE_ROWS", 50)
    monkeypatch.setattr(vocabulary, "RICH_VALUES", 20)
    monkeypatch.setattr(counting, "SKETCH_BITS", bits)
    rng = np.random.default_rng(6)
    numbers = np.where(rng.random(4000) < 0.5, rng.integers(0, 30, 4000), np.arange(4000) + 100)  # half occur once
    words = pa.array([None if n == 3 else "" if n == 4 else f"{n:x}" * (1 + n % 40) for n in numbers])
    rows = batch(4000, user=words, item=pa.array(numbers - 15))
    encode(raw(tmp_path / "raw", rows), tmp_path / "out", settings(TIME, min_count=2))
    _, known = loaded(tmp_path / "out")
    train = np.argsort(np.argsort(rows["time"].to_numpy())) < 2800
    for field in ("user", "item"):
        ids, counts = naive(rows, train, field, 2)
        expected = {None if value is None else str(value): (counts[value], i) for value, i in ids.items()}
        assert 20 < len(expected) < 40
        assert known[field] == expected


def naive(rows, train, field, min_count):
    """value -> id of a plain field, by the definition."""
    counts = {}
    for value, there in zip(rows[field].to_pylist(), train, strict=True):
        if there:
            counts[value] = counts.get(value, 0) + 1
    known = sorted(
        (value for value, count in counts.items() if count >= min_count),
        key=lambda value: (-counts[value], value is None, value if value is not None else ""),
    )
    return {value: i + 1 for i, value in enumerate(known)}, counts


def test_ids_are_those_of_the_definition(tmp_path):
    rows = batch(3000)
    record = encode(raw(tmp_path / "raw", rows), tmp_path / "out", settings(TIME, min_count=3, max_bag=2))
    parts, known = loaded(tmp_path / "out")
    times = rows["time"].to_numpy()
    order = np.sort(times)
    last = [order[2099], order[2399], order[2699]]
    part = np.searchsorted(last, times)
    assert record["split"]["last_times"] == last
    schema = Schema.load(tmp_path / "out" / "schema.json")
    assert schema.names == tuple(FIELDS)
    assert schema.widths.tolist() == [1, 1, 1, 2]
    for slot, field in enumerate(["user", "item"]):
        ids, counts = naive(rows, part == 0, field, 3)
        assert schema.cardinalities[slot] == len(ids) + 1
        assert known[field] == {None if value is None else str(value): (counts[value], i) for value, i in ids.items()}
        for number, name in enumerate(PARTS):
            expected = [ids.get(value, 0) for value in rows[field].filter(pa.array(part == number)).to_pylist()]
            assert parts[name]["ids"][:, slot].tolist() == expected
            assert parts[name]["ids"].dtype == np.int32
            assert np.array_equal(parts[name]["labels"], rows["label"].to_numpy()[part == number])
            assert parts[name]["labels"].dtype == np.uint8


def test_ids_fall_in_frequency_and_ties_go_by_value(tmp_path):
    values = ["b"] * 5 + ["a"] * 5 + ["z"] * 9 + [None] * 5 + ["once"]
    n = len(values)
    filler = 3 * n  # rows after the training part
    rows = pa.RecordBatch.from_pydict(
        {
            "label": pa.array([i % 2 for i in range(n + filler)], pa.uint8()),
            "time": pa.array(range(n + filler)),
            "word": pa.array(values + ["only later"] * filler),
        }
    )
    split = {"by": "time", "train": 0.25, "arch": 0.25, "val": 0.25, "test": 0.25}
    encode(raw(tmp_path / "raw", rows, {"word": "categorical"}), tmp_path / "out", settings(split, min_count=2))
    parts, known = loaded(tmp_path / "out")
    assert known["word"] == {"z": (9, 1), "a": (5, 2), "b": (5, 3), None: (5, 4)}
    assert parts["train"]["ids"][:, 0].tolist() == [3] * 5 + [2] * 5 + [1] * 9 + [4] * 5 + [0]
    assert not parts["test"]["ids"].any()


@pytest.mark.parametrize("numeric", ["log-square", "quantiles"])
def test_nothing_is_learned_from_other_parts(tmp_path, numeric):
    rows = batch(2000, label=pa.array([i % 2 for i in range(2000)], pa.uint8()))
    given = settings(TIME, numeric=numeric, max_bag=3)
    encode(raw(tmp_path / "raw", rows), tmp_path / "out", given)
    later = rows["time"].to_numpy() > np.sort(rows["time"].to_numpy())[1399]
    changed = {
        "user": pa.array(["new" if late else u for u, late in zip(rows["user"].to_pylist(), later, strict=True)]),
        "age": pa.array([1e6 if late else x for x, late in zip(rows["age"].to_pylist(), later, strict=True)]),
        "tags": pa.array(
            [["new"] if late else t for t, late in zip(rows["tags"].to_pylist(), later, strict=True)],
            pa.list_(pa.string()),
        ),
    }
    other = batch(2000, label=rows["label"], **changed)
    encode(raw(tmp_path / "raw2", other), tmp_path / "out2", given)
    first, second = contents(tmp_path / "out"), contents(tmp_path / "out2")
    for name in ("vocabulary.parquet", "train/ids.npy"):
        assert first[name] == second[name]
    assert json.loads(first["schema.json"])["edges"] == json.loads(second["schema.json"])["edges"]
    ids = loaded(tmp_path / "out2")[0]["test"]["ids"]
    assert not ids[:, 0].any()
    assert (ids[:, 3:] == [0, PADDING, PADDING]).all()


def one_field(tmp_path, values, kind, train=8, **rest):
    """Encode the first ``train`` values as training rows and the others as test rows.

    Returns:
        Ids of the training rows; ids of the test rows; the vocabulary; schema.json.
    """
    n = len(values)
    spare = [None] * 4  # two rows each for arch and val
    column = pa.array(values[:train] + spare + values[train:], pa.list_(pa.string()) if kind == "bag" else None)
    rows = pa.RecordBatch.from_pydict(
        {"label": pa.array([i % 2 for i in range(n + 4)], pa.uint8()), "time": pa.array(range(n + 4)), "x": column}
    )
    shares = {"train": train, "arch": 2, "val": 2, "test": n - train}
    split = {"by": "time", **{part: share / (n + 4) for part, share in shares.items()}}
    encode(raw(tmp_path / "raw", rows, {"x": kind}), tmp_path / "out", settings(split, **rest))
    parts, known = loaded(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "schema.json").read_text())
    return parts["train"]["ids"], parts["test"]["ids"], known["x"], record


def test_numbers_become_log_square_categories(tmp_path):
    values = [10.0, 10, 10, 11, None, None, float("nan"), 3, 10, None, 1e9, 3]  # ln(11)^2 = 5.75
    train, test, known, _ = one_field(tmp_path, values, "numeric", min_count=1)
    assert known == {"5": (4, 1), None: (3, 2), "1": (1, 3)}
    assert train[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 3]
    assert test[:, 0].tolist() == [1, 2, 0, 3]


def test_quantile_edges_are_those_of_the_training_rows(tmp_path):
    values = [1, 2, 3, 4, 5, 6, 7, None, 0, 4, 1000, None]
    train, test, known, record = one_field(tmp_path, values, "numeric", min_count=1, numeric="quantiles", buckets=3)
    assert record["edges"] == {"x": [3.0, 5.0]}  # thirds of 1..7; buckets v < 3, 3 <= v < 5, 5 <= v
    assert known == {"2": (3, 1), "0": (2, 2), "1": (2, 3), None: (1, 4)}
    assert train[:, 0].tolist() == [2, 2, 3, 3, 1, 1, 1, 4]
    assert test[:, 0].tolist() == [2, 3, 1, 4]


def test_bags_keep_known_values_once_in_order_and_up_to_their_width(tmp_path):
    values = [
        *[["a", "b"], ["a", "c"], ["a", "a", "b"], ["c", "b", "a", "d"], [], None, ["rare"], ["d", None, "a"]],
        *[["new", "b"], ["new"], ["b", "b", "c", "a", "d"], []],
    ]
    train, test, known, _ = one_field(tmp_path, values, "bag", min_count=2, max_bag=3)
    assert known == {"a": (5, 1), "b": (3, 2), "c": (2, 3), "d": (2, 4)}
    none = [0, PADDING, PADDING]
    assert train.tolist() == [
        *[[1, 2, PADDING], [1, 3, PADDING], [1, 2, PADDING], [3, 2, 1]],
        *[none, none, none, [4, 1, PADDING]],
    ]
    assert test.tolist() == [[2, PADDING, PADDING], none, [2, 3, 1], none]


def test_random_parts_have_their_shares_and_follow_the_seed(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"label": pa.array(rng.integers(0, 2, 20_000), pa.uint8()), "item": pa.array(rng.integers(0, 50, 20_000))}
    place = raw(tmp_path / "raw", pa.RecordBatch.from_pydict(columns), {"item": "categorical"})
    records = [encode(place, tmp_path / str(seed), settings(RANDOM, seed=seed)) for seed in (0, 1)]
    for record in records:
        for part, share in zip(PARTS, (0.7, 0.1, 0.1, 0.1), strict=True):
            assert abs(record["rows"][part] / 20_000 - share) < 4 * math.sqrt(share * (1 - share) / 20_000)
    assert records[0]["sha256"] != records[1]["sha256"]
    assert sum(records[0]["rows"].values()) == 20_000


def test_time_parts_follow_each_other(tmp_path):
    times = np.repeat([-(2**62), -5, 0, 7, 2**62], 100)
    shuffled = np.random.default_rng(0).permutation(times)
    split = {"by": "time", "train": 0.35, "arch": 0.2, "val": 0.2, "test": 0.25}
    record = encode(raw(tmp_path / "raw", batch(500, time=pa.array(shuffled))), tmp_path / "out", settings(split))
    assert record["split"]["last_times"] == [-5, 0, 7]
    assert record["rows"] == {"train": 200, "arch": 100, "val": 100, "test": 100}


def test_the_record_counts_what_is_cut_from_bags(tmp_path):
    words = [["a", "b", "c", "d", "e"], ["a", "b", "c"], ["a", "b"], None] * 100
    rows = pa.RecordBatch.from_pydict(
        {
            "label": pa.array([0, 1] * 200, pa.uint8()),
            **{name: batch(400)[name] for name in ("time", "user", "item", "age")},
            "tags": pa.array(words, pa.list_(pa.string())),
        }
    )
    for max_bag, values, cut in ((2, 400, 200), (4, 100, 100), (5, 0, 0)):
        place = raw(tmp_path / f"raw{max_bag}", rows)
        for batch_rows in (7, 1000):
            out = tmp_path / f"out{max_bag}-{batch_rows}"
            record = encode(place, out, settings(RANDOM, max_bag=max_bag), batch_rows)
            assert record["cut"] == {"tags": {"values": values, "rows": cut}}


def test_the_planted_truth_and_facts_are_kept(tmp_path):
    chances = np.random.default_rng(1).random(500)
    rows = batch(500, oracle=pa.array(chances))
    place = raw(tmp_path / "raw", rows, facts={"ranks": {"user": 4}}, defaults={"min_count": 7, "max_bag": 2})
    record = encode(place, tmp_path / "out", settings(RANDOM))
    parts, _ = loaded(tmp_path / "out")
    assert sorted(np.concatenate([parts[part]["oracle"] for part in PARTS])) == sorted(chances)
    assert parts["val"]["oracle"].dtype == np.float64
    assert record["facts"] == {"ranks": {"user": 4}}
    assert (record["min_count"], record["max_bag"]) == (7, 2)
    assert json.loads((tmp_path / "out" / "schema.json").read_text()) == record
    assert "test/oracle.npy" in record["sha256"]
    data = Encoded.load(tmp_path / "out")
    assert data.expected_labels("val") == tmp_path / "out" / "val" / "oracle.npy"
    assert data.facts == {"ranks": {"user": 4}}
    for part, about in data.labels.items():
        labels = parts[part]["labels"]
        assert about == Labels(len(labels), labels.sum() / len(labels), 0, 1, True)


def test_numbers_as_labels_are_encoded_as_float32(tmp_path):
    numbers = np.random.default_rng(3).normal(2, 5, 500)
    oracle = numbers * 0.9
    record = encode(
        raw(tmp_path / "raw", batch(500, label=pa.array(numbers), oracle=pa.array(oracle))),
        tmp_path / "out",
        settings(TIME),
    )
    data = Encoded.load(tmp_path / "out")
    times = batch(500)["time"].to_numpy()
    place = np.searchsorted(record["split"]["last_times"], times)
    for number, part in enumerate(PARTS):
        labels = data.split(part).all_labels()
        assert labels.dtype == np.float32
        assert np.array_equal(labels, numbers[place == number].astype(np.float32))
        assert np.array_equal(np.load(data.expected_labels(part)), oracle[place == number])
        about = data.labels[part]
        assert about == Labels(len(labels), about.mean, labels.min(), labels.max(), False)
        assert about.mean == pytest.approx(labels.mean(dtype=np.float64), rel=1e-12)
    _, _, stream, _ = as_stream(tmp_path / "raw")
    assert stream.dtype == np.float32
    assert np.array_equal(stream, numbers[np.argsort(times, kind="stable")].astype(np.float32))


def test_numbers_count_as_binary_if_they_are_0_and_1_alone(tmp_path):
    for step in (1.0, 0.5):
        rows = batch(300, label=pa.array([i * step % (1 + step) for i in range(300)]))
        encode(raw(tmp_path / f"raw{step}", rows), tmp_path / f"out{step}", settings(RANDOM))
        data = Encoded.load(tmp_path / f"out{step}")
        assert set(data.labels.values()) == {
            Labels(about.rows, about.mean, 0, 1, binary=step == 1) for about in data.labels.values()
        }
        assert data.split("test").all_labels().dtype == np.float32


def test_a_table_of_prices_is_encoded_from_its_text_file(tmp_path):
    lines = [f"{i % 7 - 1.5},c{i % 3},{i}" for i in range(200)]
    (tmp_path / "prices.csv").write_text("price,city,at\n" + "\n".join(lines) + "\n")
    options = {"label": "price", "label_type": "number", "categorical": ["city"], "time": "at"}
    place = written(tmp_path / "raw", table.read(tmp_path / "prices.csv", **options))
    assert json.loads((place / "raw.json").read_text())["label"]["type"] == "float64"
    encode(place, tmp_path / "out", settings(TIME))
    rows = Encoded.load(tmp_path / "out").split(*PARTS)
    assert rows.all_labels().tolist() == [i % 7 - 1.5 for i in range(200)]
    assert rows.slice(0, 4)[0][:, 0].tolist() == [1, 2, 3, 1]


def test_arrays_open_as_memory_maps(tmp_path):
    encode(raw(tmp_path / "raw", batch(400)), tmp_path / "out", settings(RANDOM, max_bag=4))
    ids = np.load(tmp_path / "out" / "train" / "ids.npy", mmap_mode="r")
    assert isinstance(ids, np.memmap)
    assert ids.shape[1] == Schema.load(tmp_path / "out" / "schema.json").num_slots == 7


def test_a_part_must_not_be_empty(tmp_path):
    same = raw(tmp_path / "same", batch(100, time=pa.array([0] * 60 + [1] * 40)))
    with pytest.raises(
        BadData,
        match=r"table.parquet: no row would go to part 'arch'; .*the number of different times is 2: give rows of",
    ):
        encode(same, tmp_path / "out2", settings(TIME))
    assert not (tmp_path / "out2").exists()


def test_files_of_the_raw_table_that_are_broken_are_refused_by_their_name(tmp_path):
    place = raw(tmp_path / "raw", batch(100))
    for name, why in (("table.parquet", "is not as ingest wrote it: its checksum"), ("raw.json", "is not JSON")):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(whole[:-10])
        with pytest.raises(ValueError, match=rf"{name}: {why} .*; delete it and run `dvc repro`"):
            encode(place, tmp_path / "out", settings(RANDOM))
        (place / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            encode(place, tmp_path / "out", settings(RANDOM))
        (place / name).write_bytes(whole)
    assert not (tmp_path / "out").exists()


def test_the_raw_table_is_opened_once_by_each_thread_however_many_columns_it_has(tmp_path, monkeypatch):
    names = [f"c{i}" for i in range(200)]
    columns = {name: pa.array([f"v{row % 5}" for row in range(400)]) for name in names}
    label = pa.array([row % 2 for row in range(400)], pa.uint8())
    rows = pa.RecordBatch.from_pydict({"label": label, **columns})
    place, opened, parquet_file = raw(tmp_path / "raw", rows, dict.fromkeys(names, "categorical")), [], pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda *args, **kw: opened.append(args) or parquet_file(*args, **kw))
    encode(place, tmp_path / "out", settings(RANDOM))
    assert 1 <= len(opened) <= 1 + threads.workers()  # the main thread reads, too


def test_values_that_are_all_rare_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no value of any field occurs in enough .*; lower encode.min_count"):
        encode(raw(tmp_path / "raw", batch(600)), tmp_path / "out", settings(RANDOM, min_count=10**6))


def test_a_time_split_needs_times(tmp_path):
    with pytest.raises(BadData, match=r"has no time to split by; set encode.split.by to random"):
        encode(raw(tmp_path / "raw", batch(100, time=None)), tmp_path / "out", settings(TIME))


def test_memory_does_not_grow_with_rows(tmp_path, monkeypatch):
    for module, name in (
        *((raw_table, "GROUP_ROWS"), (counting, "MERGE_ROWS")),
        *((buckets, "SAMPLE_ROWS"), (vocabulary, "RICH_VALUES")),
    ):
        monkeypatch.setattr(module, name, 1 << 11)
    monkeypatch.setattr(counting, "SKETCH_BITS", 17)
    monkeypatch.setattr(threads, "THREADS", 1)  # how far threads run ahead is a matter of chance
    one = batch(1 << 12)

    def new_users(repeat):
        users = np.arange(len(one)) + repeat * len(one)
        return one.set_column(one.schema.get_field_index("user"), "user", pa.array(users.astype(str)))

    usual = pa.default_memory_pool()
    peaks = []
    for repeats in (3, 18):
        place = tmp_path / str(repeats)
        place.mkdir()
        pool = pa.proxy_memory_pool(usual)  # with a peak of its own
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            record = write_raw(Source(FIELDS, map(new_users, range(repeats)), "the log"), place / "table.parquet")
            (place / "raw.json").write_text(json.dumps(record))
            encode(place, place / "out", settings(TIME, numeric="quantiles", min_count=9), 1 << 11)
            peaks.append((tracemalloc.get_traced_memory()[1], pool.max_memory()))
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(usual)
    for few, many in zip(*peaks, strict=True):
        assert many < 1.3 * few, peaks
