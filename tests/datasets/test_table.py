import datetime
import gzip
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.datasets.table import read
from pipeline.sources.source import BadData, NotFound

REAL = Path(__file__).parents[2] / "../shared/data"
OPTIONS = {"label": "clicked", "categorical": ["city"], "numeric": ["age"], "bag": ["tags"], "time": "at"}
TEXT = "at,clicked,city,age,tags,other\n10,1,Rome,4.5,a|b,x\n20,0,,,,y\n15,1,NA,-3,b,\n"
EXPECTED = {
    "label": [1, 0, 1],
    "time": [10, 20, 15],
    "city": ["Rome", None, "NA"],
    "age": [4.5, None, -3],
    "tags": [["a", "b"], None, ["b"]],
}


def table(path, **options):
    return pa.Table.from_batches(read(path, **{**OPTIONS, **options}).batches).to_pydict()


def put(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv(tmp_path):
    path = put(tmp_path / "log.csv", TEXT)
    assert read(path, **OPTIONS).fields == {"city": "categorical", "age": "numeric", "tags": "bag"}
    assert table(path) == EXPECTED
    assert table(tmp_path) == EXPECTED


def test_tsv_gz_and_zip(tmp_path):
    text = TEXT.replace(",", "\t").encode()
    assert table(put(tmp_path / "log.tsv", text)) == EXPECTED
    assert table(put(tmp_path / "log.tsv.gz", gzip.compress(text))) == EXPECTED
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        archive.writestr("log.tsv", text)
    assert table(tmp_path / "log.zip") == EXPECTED


def test_options_of_text(tmp_path):
    text = '10;yes;"Rome; Italy";4.5;a/b;x\n20; no ;?;?;?;y\n15;yes;NA;-3;b;\n'
    path = put(tmp_path / "log.txt", text)
    names = ["at", "clicked", "city", "age", "tags", "other"]
    found = table(path, delimiter=";", positive="yes", separator="/", missing=["?"], names=names)
    assert found == {**EXPECTED, "city": ["Rome; Italy", None, "NA"]}


def parquet(path, **columns):
    plain = {
        "at": pa.array([10, 20, 15]),
        "clicked": pa.array([True, False, True]),
        "city": pa.array(["Rome", None, "NA"]).dictionary_encode(),
        "age": pa.array([4.5, None, -3]),
        "tags": pa.array([["a", "b"], None, ["b"]]),
        "other": pa.array([{"x": 1}] * 3),
    }
    pq.write_table(pa.table(plain | columns), path, row_group_size=2)
    return path


def test_parquet(tmp_path):
    assert table(parquet(tmp_path / "log.parquet")) == EXPECTED


def test_types_of_parquet(tmp_path):
    moments = [datetime.datetime(1970, 1, 1, 0, 0, second) for second in (10, 20, 15)]
    path = parquet(
        tmp_path / "log.parquet",
        at=pa.array(moments, pa.timestamp("ms")),
        clicked=pa.array(["+", "-", "+"], pa.large_string()),
        city=pa.array([3.0, None, 4.0]),
        tags=pa.array(["a|b", None, "b"]),
    )
    found = table(path, positive="+")
    assert found["label"] == EXPECTED["label"]
    assert found["time"] == [10_000, 20_000, 15_000]
    assert found["city"] == [3, None, 4]
    assert found["tags"] == EXPECTED["tags"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"clicked": pa.array([0, 2, 1])}, r"row 2, column 'clicked' must be 0 or 1, found '2'; .*option 'positive'"),
        ({"clicked": pa.array(["+", "-", "+"])}, r"row 1, column 'clicked' must be 0 or 1, found '\+'"),
        ({"clicked": pa.array([0, 1, None])}, r"row 3, column 'clicked' must be 0 or 1"),
        ({"city": pa.array([1.5, 2, 3])}, r"column 'city' is categorical, however holds fractions"),
        ({"age": pa.array(["1", "2", "3"])}, r"column 'age' is string, which does not suit numeric"),
    ],
)
def test_bad_parquet_is_told(tmp_path, columns, message):
    with pytest.raises(BadData, match=message):
        table(parquet(tmp_path / "log.parquet", **columns))


def test_damaged_parquet_is_told(tmp_path):
    path = parquet(tmp_path / "log.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadData, match=r"log.parquet: cannot be read .*write or copy the file again"):
        table(path)
    with pytest.raises(BadData, match=r"no column 'town'; there are \['at', "):
        table(parquet(tmp_path / "log.parquet"), categorical=["town"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace(",0,", ",no,"), r"log.csv, line 3: column 'clicked' must be 0 or 1, found 'no'.*'positive'"),
        (TEXT.replace("4.5", "old"), r"log.csv, line 2: column 'age' must be a number, found 'old'.*'missing'"),
        (TEXT.replace("15,1", "noon,1"), r"log.csv, line 4: column 'at' must be a whole number, found 'noon'"),
        (TEXT.replace("15,1", ",1"), r"log.csv, line 4: column 'at' is missing"),
        (TEXT.replace("15,1", "1,5,1"), r"log.csv, line 4: 7 values where 6 are expected.*option 'delimiter'"),
        (TEXT.replace(",", ";"), r"log.csv, line 1: no column 'clicked', .*\(separated by ','\)"),
        (TEXT.replace("Rome", '"Rome'), r"log.csv, line 2: malformed quotes"),
        ("", r"log.csv: is empty"),
    ],
)
def test_bad_text_is_told(tmp_path, text, message):
    with pytest.raises(BadData, match=message):
        table(put(tmp_path / "log.csv", text))


def test_bad_options_are_told(tmp_path):
    path = put(tmp_path / "log.csv", TEXT)
    with pytest.raises(ValueError, match=r"columns named twice: \['city'\]"):
        table(path, numeric=["city"])
    with pytest.raises(ValueError, match=r"'categorical' must be a list of texts, however 'city'"):
        table(path, categorical="city")
    with pytest.raises(ValueError, match=r"delimiter must be one character, however delimiter='::'"):
        table(path, delimiter="::")
    with pytest.raises(NotFound, match=r"there is no .*nowhere.csv; set dataset.path"):
        table(tmp_path / "nowhere.csv")
    put(tmp_path / "other.csv", TEXT)
    with pytest.raises(BadData, match=r"has 2 tables where one is expected, found \['log.csv', 'other.csv'\]"):
        table(tmp_path)


@pytest.mark.skipif(not (REAL / "adult").exists(), reason="the data are not here")
def test_adult_reads_without_header():
    names = "age workclass fnlwgt education years marital occupation relationship race sex gain loss hours country pay"
    found = pa.Table.from_batches(
        read(
            REAL / "adult/adult.data.gz",
            names=names.split(),
            label="pay",
            positive=">50K",
            missing=["?"],
            categorical=["workclass", "country"],
            numeric=["age"],
        ).batches
    )
    assert len(found) == 32_561
    assert found["label"].to_numpy().sum() == 7_841
    assert found["workclass"].null_count == 1_836
