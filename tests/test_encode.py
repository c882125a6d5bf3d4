import json
import math
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.schema import PADDING, Schema
from pipeline.encoding import encode as encoding
from pipeline.encoding.buckets import log_square
from pipeline.encoding.encode import Settings, encode
from pipeline.encoding.parts import PARTS, splitmix64
from pipeline.sources import raw as source
from pipeline.sources.raw import write_raw
from pipeline.sources.source import BadData, Source

RANDOM = {"by": "random", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
TIME = {**RANDOM, "by": "time"}
FIELDS = {"user": "categorical", "item": "categorical", "age": "numeric", "tags": "bag"}


def batch(n, seed=0, **columns):
    rng = np.random.default_rng(seed)
    words = np.array([f"t{i}" for i in range(12)])
    plain = {
        "label": pa.array(rng.integers(0, 2, n), pa.uint8()),
        "user": pa.array([f"u{i}" if i else None for i in rng.geometric(0.05, n) - 1]),
        "item": pa.array(rng.geometric(0.02, n)),
        "age": pa.array([None if rng.random() < 0.1 else x for x in rng.normal(20, 30, n)]),
        "tags": pa.array(
            [None if k == 0 else list(rng.choice(words, k - 1)) for k in rng.integers(0, 6, n)],
            pa.list_(pa.string()),
        ),
        "time": pa.array(rng.integers(0, 10**9, n)),
    }
    return pa.RecordBatch.from_pydict({name: pa.array(v) for name, v in (plain | columns).items() if v is not None})


def raw(folder, rows, fields=FIELDS, **rest):
    folder.mkdir()
    record = write_raw(Source(fields, [rows], "the log", **rest), folder / "table.parquet")
    (folder / "raw.json").write_text(json.dumps(record))
    return folder


def loaded(folder):
    """{part: {array name: array}} and the vocabulary as {field: {value: (count, id)}}."""
    parts = {part: {path.stem: np.load(path) for path in (folder / part).glob("*.npy")} for part in PARTS}
    vocabulary = {}
    for row in pq.read_table(folder / "vocabulary.parquet").to_pylist():
        vocabulary.setdefault(row["feature"], {})[row["value"]] = (row["count"], row["id"])
    return parts, vocabulary


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("split", [RANDOM, TIME], ids=["random", "time"])
@pytest.mark.parametrize("numeric", ["log-square", "quantiles"])
def test_the_result_is_the_same_whatever_the_batches(tmp_path, monkeypatch, split, numeric):
    settings = Settings(split=split, numeric=numeric, buckets=7, max_bag=3, seed=3)
    results = []
    usual = 1 << 17
    for group_rows, batch_rows, rich in ((usual, usual, usual), (usual, usual, usual), (usual, 13, 9), (100, usual, 9)):
        monkeypatch.setattr(source, "GROUP_ROWS", group_rows)
        monkeypatch.setattr(encoding, "RICH_VALUES", rich)
        monkeypatch.setattr(encoding, "SKETCH_BITS", 4)
        monkeypatch.setattr(encoding, "MERGE_ROWS", group_rows)
        monkeypatch.setattr(encoding, "SAMPLE_ROWS", 400)
        place = tmp_path / str(len(results))
        encode(raw(place, batch(2000)), place / "encoded", settings, batch_rows)
        found = contents(place / "encoded")
        record = json.loads(found.pop("schema.json"))
        del record["raw_sha256"]  # depends on the row groups that this test varies
        results.append((found, record))
    assert all(result == results[0] for result in results)
    assert set(results[0][0]) == {"vocabulary.parquet", *(f"{p}/{a}.npy" for p in PARTS for a in ("ids", "labels"))}


@pytest.mark.parametrize("bits", [3, 22], ids=["full of collisions", "roomy"])
def test_rich_fields_are_counted_exactly(tmp_path, monkeypatch, bits):
    monkeypatch.setattr(source, "GROUP_ROWS", 500)
    monkeypatch.setattr(encoding, "MERGE_ROWS", 50)
    monkeypatch.setattr(encoding, "RICH_VALUES", 20)
    monkeypatch.setattr(encoding, "SKETCH_BITS", bits)
    rng = np.random.default_rng(6)
    numbers = np.where(rng.random(4000) < 0.5, rng.integers(0, 30, 4000), np.arange(4000) + 100)  # half occur once
    words = pa.array([None if n == 3 else "" if n == 4 else f"{n:x}" * (1 + n % 40) for n in numbers])
    rows = batch(4000, user=words, item=pa.array(numbers - 15))
    encode(raw(tmp_path / "raw", rows), tmp_path / "out", Settings(split=TIME, min_count=2))
    _, vocabulary = loaded(tmp_path / "out")
    train = np.argsort(np.argsort(rows["time"].to_numpy())) < 2800
    for field in ("user", "item"):
        ids, counts = naive(rows, train, field, 2)
        found = {None if value is None else str(value): (counts[value], i) for value, i in ids.items()}
        assert 20 < len(found) < 40
        assert vocabulary[field] == found


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
    record = encode(raw(tmp_path / "raw", rows), tmp_path / "out", Settings(split=TIME, min_count=3, max_bag=2))
    parts, vocabulary = loaded(tmp_path / "out")
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
        assert vocabulary[field] == {
            None if value is None else str(value): (counts[value], i) for value, i in ids.items()
        }
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
    encode(raw(tmp_path / "raw", rows, {"word": "categorical"}), tmp_path / "out", Settings(split=split, min_count=2))
    parts, vocabulary = loaded(tmp_path / "out")
    assert vocabulary["word"] == {"z": (9, 1), "a": (5, 2), "b": (5, 3), None: (5, 4)}
    assert parts["train"]["ids"][:, 0].tolist() == [3] * 5 + [2] * 5 + [1] * 9 + [4] * 5 + [0]
    assert not parts["test"]["ids"].any()


@pytest.mark.parametrize("numeric", ["log-square", "quantiles"])
def test_nothing_is_learned_from_other_parts(tmp_path, numeric):
    rows = batch(2000, label=pa.array([i % 2 for i in range(2000)], pa.uint8()))
    settings = Settings(split=TIME, numeric=numeric, max_bag=3)
    encode(raw(tmp_path / "raw", rows), tmp_path / "out", settings)
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
    encode(raw(tmp_path / "raw2", other), tmp_path / "out2", settings)
    first, second = contents(tmp_path / "out"), contents(tmp_path / "out2")
    for name in ("vocabulary.parquet", "train/ids.npy"):
        assert first[name] == second[name]
    assert json.loads(first["schema.json"])["edges"] == json.loads(second["schema.json"])["edges"]
    ids = loaded(tmp_path / "out2")[0]["test"]["ids"]
    assert not ids[:, 0].any()
    assert (ids[:, 3:] == [0, PADDING, PADDING]).all()


def test_log_square_by_hand():
    given = [-3, -0.5, 0, 1, 2, 2.5, 3, 4, 5, 10, 1000]
    #        ln(2.5)^2 = .84, ln(3)^2 = 1.21, ln(4)^2 = 1.92, ln(5)^2 = 2.59, ln(10)^2 = 5.30, ln(1000)^2 = 47.7
    assert log_square(np.array(given)).tolist() == [-3, -1, 0, 1, 2, 0, 1, 1, 2, 5, 47]
    assert [math.floor(math.log(v) ** 2) for v in (3, 10, 1000)] == [1, 5, 47]


def one_field(tmp_path, values, kind, train=8, **settings):
    """Encode the first ``train`` values as training rows, the rest as test rows; return the ids and vocabulary."""
    n = len(values)
    spare = [None] * 4  # two rows each for arch and val
    column = pa.array(values[:train] + spare + values[train:], pa.list_(pa.string()) if kind == "bag" else None)
    rows = pa.RecordBatch.from_pydict(
        {"label": pa.array([i % 2 for i in range(n + 4)], pa.uint8()), "time": pa.array(range(n + 4)), "x": column}
    )
    shares = {"train": train, "arch": 2, "val": 2, "test": n - train}
    split = {"by": "time", **{part: share / (n + 4) for part, share in shares.items()}}
    encode(raw(tmp_path / "raw", rows, {"x": kind}), tmp_path / "out", Settings(split=split, **settings))
    parts, vocabulary = loaded(tmp_path / "out")
    return (
        parts["train"]["ids"],
        parts["test"]["ids"],
        vocabulary["x"],
        json.loads((tmp_path / "out" / "schema.json").read_text()),
    )


def test_numbers_become_log_square_categories(tmp_path):
    values = [10.0, 10, 10, 11, None, None, float("nan"), 3, 10, None, 1e9, 3]  # ln(11)^2 = 5.75
    train, test, vocabulary, _ = one_field(tmp_path, values, "numeric", min_count=1)
    assert vocabulary == {"5": (4, 1), None: (3, 2), "1": (1, 3)}
    assert train[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 3]
    assert test[:, 0].tolist() == [1, 2, 0, 3]


def test_quantile_edges_are_those_of_the_training_rows(tmp_path):
    values = [1, 2, 3, 4, 5, 6, 7, None, 0, 4, 1000, None]
    train, test, vocabulary, record = one_field(
        tmp_path, values, "numeric", min_count=1, numeric="quantiles", buckets=3
    )
    assert record["edges"] == {"x": [3.0, 5.0]}  # thirds of 1..7; buckets v < 3, 3 <= v < 5, 5 <= v
    assert vocabulary == {"2": (3, 1), "0": (2, 2), "1": (2, 3), None: (1, 4)}
    assert train[:, 0].tolist() == [2, 2, 3, 3, 1, 1, 1, 4]
    assert test[:, 0].tolist() == [2, 3, 1, 4]


def test_bags_keep_known_values_once_in_order_and_up_to_their_width(tmp_path):
    values = [
        *[["a", "b"], ["a", "c"], ["a", "a", "b"], ["c", "b", "a", "d"], [], None, ["rare"], ["d", None, "a"]],
        *[["new", "b"], ["new"], ["b", "b", "c", "a", "d"], []],
    ]
    train, test, vocabulary, _ = one_field(tmp_path, values, "bag", min_count=2, max_bag=3)
    assert vocabulary == {"a": (5, 1), "b": (3, 2), "c": (2, 3), "d": (2, 4)}
    none = [0, PADDING, PADDING]
    assert train.tolist() == [
        *[[1, 2, PADDING], [1, 3, PADDING], [1, 2, PADDING], [3, 2, 1]],
        *[none, none, none, [4, 1, PADDING]],
    ]
    assert test.tolist() == [[2, PADDING, PADDING], none, [2, 3, 1], none]


def test_splitmix64_is_the_published_generator():
    # The state that gives 0x9E37... after one step is 0: the first outputs for seed 0 of the published code.
    start = 0

    def published(state):
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    assert published(golden) == 0xE220A8397B1DCDAF
    state = published((start + golden) % 2**64)
    expected = [published((state + (row + 1) * golden) % 2**64) for row in (0, 1, 10**9)]
    assert splitmix64(np.array([0, 1, 10**9]), 0).tolist() == expected


def test_random_parts_have_their_shares_and_follow_the_seed(tmp_path):
    rows = batch(20_000)
    place = raw(tmp_path / "raw", rows)
    records = [encode(place, tmp_path / str(seed), Settings(split=RANDOM, seed=seed)) for seed in (0, 1)]
    for record in records:
        for part, share in zip(PARTS, (0.7, 0.1, 0.1, 0.1), strict=True):
            assert abs(record["rows"][part] / 20_000 - share) < 4 * math.sqrt(share * (1 - share) / 20_000)
    assert records[0]["sha256"] != records[1]["sha256"]
    assert sum(records[0]["rows"].values()) == 20_000


def test_time_parts_follow_each_other(tmp_path):
    times = np.repeat([-(2**62), -5, 0, 7, 2**62], 100)
    shuffled = np.random.default_rng(0).permutation(times)
    split = {"by": "time", "train": 0.35, "arch": 0.2, "val": 0.2, "test": 0.25}
    record = encode(raw(tmp_path / "raw", batch(500, time=pa.array(shuffled))), tmp_path / "out", Settings(split=split))
    assert record["split"]["last_times"] == [-5, 0, 7]
    assert record["rows"] == {"train": 200, "arch": 100, "val": 100, "test": 100}


def test_the_planted_truth_and_facts_are_kept(tmp_path):
    chances = np.random.default_rng(1).random(500)
    rows = batch(500, oracle=pa.array(chances))
    place = raw(tmp_path / "raw", rows, facts={"ranks": {"user": 4}}, defaults={"min_count": 7, "max_bag": 2})
    record = encode(place, tmp_path / "out", Settings(split=RANDOM))
    parts, _ = loaded(tmp_path / "out")
    assert sorted(np.concatenate([parts[part]["oracle"] for part in PARTS])) == sorted(chances)
    assert parts["val"]["oracle"].dtype == np.float64
    assert record["facts"] == {"ranks": {"user": 4}}
    assert (record["min_count"], record["max_bag"]) == (7, 2)
    assert json.loads((tmp_path / "out" / "schema.json").read_text()) == record
    assert "test/oracle.npy" in record["sha256"]
    labels = np.concatenate([parts[part]["labels"] for part in ("arch", "val")])
    rates = [record["label_rate"][part] * record["rows"][part] for part in ("arch", "val")]
    assert labels.sum() == pytest.approx(sum(rates))


def test_arrays_open_as_memory_maps(tmp_path):
    encode(raw(tmp_path / "raw", batch(400)), tmp_path / "out", Settings(split=RANDOM, max_bag=4))
    ids = np.load(tmp_path / "out" / "train" / "ids.npy", mmap_mode="r")
    assert isinstance(ids, np.memmap)
    assert ids.shape[1] == Schema.load(tmp_path / "out" / "schema.json").num_slots == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": {**RANDOM, "train": 0.8}}, r"shares must sum to 1, however \[0.8, 0.1, 0.1, 0.1\] sum to 1.1"),
        ({"split": {"by": "random", "train": 1}}, r"encode.split must have by, train, arch, val, test; however"),
        ({"split": {**RANDOM, "by": "user"}}, r"encode.split.by must be 'random' or 'time', however 'user'"),
        ({"split": {**RANDOM, "arch": 0, "train": 0.8}}, r"every share must lie between 0 and 1"),
        ({"numeric": "log"}, r"encode.numeric must be 'log-square' or 'quantiles', however 'log'"),
        ({"min_count": 0}, r"encode.min_count must be a whole number of at least 1, however 0"),
        ({"buckets": None}, r"encode.buckets must be a whole number of at least 2, however None"),
        ({"max_bag": 1.5}, r"encode.max_bag must be a whole number"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"split": RANDOM, **change})


def test_a_part_needs_both_labels(tmp_path):
    rows = batch(
        100, time=pa.array(range(100)), label=pa.array([i % 2 if i < 90 else 1 for i in range(100)], pa.uint8())
    )
    with pytest.raises(BadData, match=r"part 'test' would get 0 rows of label 0 and 10 of label 1.*encode.split.test"):
        encode(raw(tmp_path / "raw", rows), tmp_path / "out", Settings(split=TIME))
    assert not (tmp_path / "out").exists()


def test_a_time_split_needs_times(tmp_path):
    with pytest.raises(BadData, match=r"has no time to split by; set encode.split.by to 'random'"):
        encode(raw(tmp_path / "raw", batch(100, time=None)), tmp_path / "out", Settings(split=TIME))


def test_memory_does_not_grow_with_rows(tmp_path, monkeypatch):
    for module, name in (
        *((source, "GROUP_ROWS"), (encoding, "MERGE_ROWS")),
        *((encoding, "SAMPLE_ROWS"), (encoding, "RICH_VALUES")),
    ):
        monkeypatch.setattr(module, name, 1 << 11)
    monkeypatch.setattr(encoding, "SKETCH_BITS", 17)
    monkeypatch.setattr(encoding, "THREADS", 1)  # how far threads run ahead is chance
    one = batch(1 << 12)

    def new_users(repeat):
        users = np.arange(len(one)) + repeat * len(one)
        return one.set_column(one.schema.get_field_index("user"), "user", pa.array(users.astype(str)))

    usual = pa.default_memory_pool()
    peaks = []
    for repeats in (4, 32):
        place = tmp_path / str(repeats)
        place.mkdir()
        pool = pa.proxy_memory_pool(usual)  # with a peak of its own
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            record = write_raw(Source(FIELDS, map(new_users, range(repeats)), "the log"), place / "table.parquet")
            (place / "raw.json").write_text(json.dumps(record))
            encode(place, place / "out", Settings(split=TIME, numeric="quantiles", min_count=9), 1 << 11)
            peaks.append((tracemalloc.get_traced_memory()[1], pool.max_memory()))
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(usual)
    for few, many in zip(*peaks, strict=True):
        assert many < 1.3 * few, peaks
