"""Spark encodes rows as this machine does: every file has the same bytes, wherever the rows are from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import criteo_file
from pipeline.data.encoded import Encoded
from pipeline.datasets import criteo, movielens_1m, movielens_100k, synthetic, table
from pipeline.encoding import buckets, vocabulary
from pipeline.encoding.encode import encode
from pipeline.sources.raw import write_raw
from pipeline.sources.source import Source
from pipeline.workflow.params import Encode
from tests.project import Project

pyspark = pytest.importorskip("pyspark")
pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # py4j's sockets
]
REAL = Path(__file__).parents[2] / "../shared/data"
RANDOM = {"by": "random", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
TIME = {**RANDOM, "by": "time"}
OPTIONS = {"label": "label", "categorical": ["user", "item"], "numeric": ["age"], "bag": ["tags"], "time": "time"}
FIELDS = {"user": "categorical", "item": "categorical", "age": "numeric", "tags": "bag"}


@pytest.fixture(scope="module", autouse=True)
def spark():
    """An application on two cores, whose pieces of files are small; `encode` finds it running."""
    from pyspark.sql import SparkSession

    conf = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2", "spark.driver.host": "127.0.0.1"}
    conf["spark.sql.files.maxPartitionBytes"] = "40000"
    running = SparkSession.getActiveSession()
    session = running or SparkSession.builder.master("local[2]").config(map=conf).getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    if running is None:
        session.stop()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The code for the workers is packed into the current folder."""
    monkeypatch.chdir(tmp_path)


def rows(n, seed=0):
    """n rows: skewed values, ties, missing values, bags, whole and fractional numbers."""
    rng = np.random.default_rng(seed)
    tags = [None if k == 0 else [f"t{i}" for i in rng.integers(0, 12, k)] for k in rng.integers(0, 6, n)]
    return pa.table(
        {
            "label": pa.array(rng.integers(0, 2, n), pa.uint8()),
            "user": pa.array([f"ü{i}" if i else None for i in rng.geometric(0.05, n) - 1]),
            "item": pa.array(rng.geometric(0.02, n)),
            "age": pa.array(rng.normal(20, 30, n), mask=rng.random(n) < 0.1),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "time": pa.array(rng.integers(-(10**9), 10**9, n)),
        }
    )


def written(folder, source):
    folder.mkdir(parents=True)
    (folder / "raw.json").write_text(json.dumps(write_raw(source, folder / "table.parquet")))
    return folder


def referring(folder, path, dataset, options):
    """A folder as ``ingest`` writes it for an address."""
    folder.mkdir(parents=True)
    record = {"address": path.as_uri(), "dataset": dataset, "options": options, "sha256": "0" * 64}
    (folder / "raw.json").write_text(json.dumps(record))
    return folder


def both(tmp_path, raw, of_spark, **settings):
    """What the two engines write, as {file: bytes}. The identity of the raw rows is left out."""
    found = []
    for engine, folder in (("local", raw), ("spark", of_spark)):
        record = encode(folder, tmp_path / engine, Encode(engine=engine, **settings))
        files = {str(p.relative_to(tmp_path / engine)): p for p in (tmp_path / engine).rglob("*") if p.is_file()}
        record = {name: value for name, value in record.items() if name not in ("raw_sha256", "dataset", "options")}
        contents = {name: path.read_bytes() for name, path in files.items() if name != "schema.json"}
        found.append((json.dumps(record), contents))
        if raw == of_spark:
            contents["schema.json"] = files["schema.json"].read_bytes()
    return found


def csv(data, path):
    """A text file with the label as a word, and with line ends of Windows."""
    lines = [",".join(data.schema.names)]
    for row in data.to_pylist():
        row["label"], row["tags"] = ("no", "Yes")[row["label"]], "|".join(row["tags"] or [])
        lines.append(",".join("" if value is None else str(value) for value in row.values()))
    path.write_bytes("\r\n".join([*lines, ""]).encode())


@pytest.mark.parametrize(
    "settings",
    [
        {"split": RANDOM, "seed": 3, "min_count": 5},
        {"split": TIME, "numeric": "quantiles", "max_bag": 2},
    ],
    ids=["random", "time, quantiles, short bags"],
)
def test_the_raw_table_is_encoded_to_the_same_bytes(tmp_path, settings):
    raw = written(tmp_path / "raw", Source(FIELDS, rows(3000).to_batches(), "the log"))
    local, spark = both(tmp_path, raw, raw, **settings)
    assert spark == local


def test_sums_of_float_labels_are_the_same_to_the_last_bit(tmp_path, monkeypatch):
    """They depend on the order of the rows; and a random sample for quantiles is the same rows."""
    monkeypatch.setattr(buckets, "SAMPLE_ROWS", 300)
    labels = pa.array(np.random.default_rng(1).lognormal(0, 3, 3000))
    data = rows(3000).set_column(0, "label", labels)
    options = {"label": "label", "label_type": "number", "numeric": ["age"], "categorical": ["item"]}
    (tmp_path / "in").mkdir()
    pq.write_table(data, tmp_path / "in" / "prices.parquet", row_group_size=500)
    raw = written(tmp_path / "raw", table.read(tmp_path / "in", **options))
    there = referring(tmp_path / "there", tmp_path / "in", "table", options)
    local, spark = both(tmp_path, raw, there, split=RANDOM, numeric="quantiles")
    assert spark == local


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_files_at_an_address_are_read_in_the_order_of_their_names(tmp_path, form):
    data, folder = rows(4000), tmp_path / "in"
    folder.mkdir()
    for name, piece in {"b": data[:2500], "a": data[2500:2503], "z z": data[2503:]}.items():
        if form == "csv":
            csv(piece, folder / f"{name}.csv")
        else:
            pq.write_table(piece, folder / f"{name}.parquet", row_group_size=400)
            pq.write_table(piece[:0], folder / f"0 {name}.parquet")  # as Spark writes an empty partition
    raw = written(tmp_path / "raw", table.read(folder, **OPTIONS))
    there = referring(tmp_path / "there", folder, "table", OPTIONS)
    local, spark = both(tmp_path, raw, there, split=TIME, numeric="quantiles")
    assert spark == local


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_criteo_is_read_without_a_header_and_rich_fields_are_counted(tmp_path, monkeypatch, name):
    monkeypatch.setattr(vocabulary, "RICH_VALUES", 100)
    criteo_file.write(tmp_path / name, 3000)
    raw = written(tmp_path / "raw", criteo.read(tmp_path / name))
    there = referring(tmp_path / "there", tmp_path / name, "criteo", {})
    local, spark = both(tmp_path, raw, there, split=RANDOM)
    assert spark == local


def test_planted_data_are_encoded_to_the_same_bytes_with_their_truth(tmp_path):
    raw = written(tmp_path / "raw", synthetic.read(tmp_path, rows=3000))
    local, spark = both(tmp_path, raw, raw, split=RANDOM)
    assert spark == local
    assert "train/oracle.npy" in spark[1]


def test_the_stages_read_an_address_and_training_reads_what_they_write(tmp_path):
    csv(rows(3000), tmp_path / "log.csv")
    (tmp_path / "log.url").write_text((tmp_path / "log.csv").as_uri())
    dataset = {"name": "table", "path": "log.url", "options": OPTIONS}
    project = Project(tmp_path, dataset=dataset, encode__engine="spark", encode__seed=5).run(
        "check", "ingest", "encode"
    )
    there = Encoded.load(project.folder / "artifacts" / "encoded").split("train", "val")
    project.give(dataset__path="log.csv", encode__engine="local").run("check", "ingest", "encode")
    here = Encoded.load(project.folder / "artifacts" / "encoded").split("train", "val")
    assert all(isinstance(array, np.memmap) for array in there.ids)
    for of_spark, local in zip((*there.ids, *there.labels), (*here.ids, *here.labels), strict=True):
        np.testing.assert_array_equal(of_spark, local)


@pytest.mark.parametrize("data", [movielens_100k, movielens_1m], ids=["100K", "1M"])
def test_movielens_is_encoded_to_the_same_bytes(tmp_path, data):
    folder = REAL / {movielens_100k: "ml-100k", movielens_1m: "ml-1m"}[data]
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    raw = written(tmp_path / "raw", data.read(folder))
    local, spark = both(tmp_path, raw, raw, split=TIME)
    assert spark == local


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("maybe,u,1,1,a,5", "column 'label' must be no or yes, got 'maybe'"),
        ("no,u,1,x,a,5", "column 'age' must be a number, got 'x'"),
        ("no,u,1", "must have 6 values, has 3"),
    ],
)
def test_a_wrong_line_is_named_by_its_file_and_number(tmp_path, line, words):
    csv(rows(50), tmp_path / "log.csv")
    with (tmp_path / "log.csv").open("a") as file:
        file.write(f"{line}\n")
    there = referring(tmp_path / "there", tmp_path / "log.csv", "table", OPTIONS)
    with pytest.raises(ValueError, match=rf"log\.csv, line 52: {words}"):
        encode(there, tmp_path / "out", Encode(engine="spark", split=RANDOM))


def test_what_spark_cannot_read_is_refused_in_one_sentence(tmp_path):
    cases = {
        "Spark cannot read .*nowhere": (tmp_path / "nowhere", "table", OPTIONS),
        "line 1: must be the header of the first file": (tmp_path / "in", "table", OPTIONS),
        "has interactions, and Spark encodes rows with labels only": (
            tmp_path / "in" / "a.csv",
            "table",
            {"interactions": {"user": "user", "item": "item"}},
        ),
        "choose a data set of one table": (tmp_path / "in" / "a.csv", "synthetic", {}),
    }
    (tmp_path / "in").mkdir()
    csv(rows(50), tmp_path / "in" / "a.csv")
    csv(rows(50).select(["user", "label", "item", "age", "tags", "time"]), tmp_path / "in" / "b.csv")
    for number, (words, (path, dataset, options)) in enumerate(cases.items()):
        there = referring(tmp_path / str(number), path, dataset, options)
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            encode(there, tmp_path / "out", Encode(engine="spark", split=RANDOM))
