import datetime
import decimal
import gzip
import re
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.datasets.table import read
from pipeline.sources.source import BadData
from pipeline.workflow.validation import checked_options

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


def test_csv_is_read_as_a_file_and_in_a_folder(tmp_path):
    path = put(tmp_path / "log.csv", TEXT)
    assert read(path, **OPTIONS).fields == {"city": "categorical", "age": "numeric", "tags": "bag"}
    assert table(path) == EXPECTED
    assert table(tmp_path) == EXPECTED


def test_tsv_is_read_plain_gzipped_and_in_a_zip(tmp_path):
    text = TEXT.replace(",", "\t").encode()
    assert table(put(tmp_path / "log.tsv", text)) == EXPECTED
    assert table(put(tmp_path / "log.tsv.gz", gzip.compress(text))) == EXPECTED
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        archive.writestr("log.tsv", text)
    assert table(tmp_path / "log.zip") == EXPECTED


def test_options_say_how_text_is_laid_out(tmp_path):
    text = '10;yes;"Rome; Italy";4.5;a/b;x\n20; no ;?;?;?;y\n15;yes;NA;-3;b;\n'
    path = put(tmp_path / "log.txt", text)
    names = ["at", "clicked", "city", "age", "tags", "other"]
    rows = table(path, delimiter=";", positive="yes", separator="/", missing=["?"], names=names)
    assert rows == {**EXPECTED, "city": ["Rome; Italy", None, "NA"]}


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


def test_parquet_reads_like_text(tmp_path):
    assert table(parquet(tmp_path / "log.parquet")) == EXPECTED


def test_parquet_types_become_those_of_the_contract(tmp_path):
    moments = [datetime.datetime(1970, 1, 1, 0, 0, second) for second in (10, 20, 15)]
    path = parquet(
        tmp_path / "log.parquet",
        at=pa.array(moments, pa.timestamp("ms")),
        clicked=pa.array(["+", "-", "+"], pa.large_string()),
        city=pa.array([3.0, None, 4.0]),
        tags=pa.array(["a|b", None, "b"]),
    )
    rows = table(path, positive="+")
    assert rows["label"] == EXPECTED["label"]
    assert rows["time"] == [10_000, 20_000, 15_000]
    assert rows["city"] == [3, None, 4]
    assert rows["tags"] == EXPECTED["tags"]


def test_a_label_may_be_any_finite_number(tmp_path):
    text = TEXT.replace(",1,", ",-2.5,").replace(",0,", ",1e3,")
    assert table(put(tmp_path / "log.csv", text), label_type="number") == {**EXPECTED, "label": [-2.5, 1000, -2.5]}
    numbers = [3.5, -1, 0]
    for column in (
        pa.array(numbers),
        pa.array(numbers, pa.float32()),
        pa.array([decimal.Decimal(str(number)) for number in numbers]),
    ):
        path = parquet(tmp_path / "log.parquet", clicked=column)
        assert table(path, label_type="number") == {**EXPECTED, "label": numbers}
    assert table(parquet(tmp_path / "log.parquet"), label_type="number") == EXPECTED
    integers = parquet(tmp_path / "log.parquet", clicked=pa.array([2**60 + 1, 0, -7]))
    assert table(integers, label_type="number")["label"] == [2.0**60, 0, -7]


def test_labels_that_are_not_finite_numbers_are_named(tmp_path):
    for value, problem in (
        ("", "is missing, got ''; fill it in or remove the line"),
        ("?", "is missing, got '?'; fill it in or remove the line"),
        ("high", "must be a number, got 'high'; correct the value or remove the line"),
        ("nan", "must be a number, got 'nan'; correct the value or remove the line"),
        ("inf", "must be finite, got 'inf'; correct the value or remove the line"),
    ):
        path = put(tmp_path / "log.csv", TEXT.replace(",0,", f",{value},"))
        with pytest.raises(BadData, match=rf"log.csv, line 3: column 'clicked' {re.escape(problem)}"):
            table(path, label_type="number", missing=["?"])
    for column, value in (
        (pa.array([1.5, None, 3]), "None"),
        (pa.array([1.5, float("nan"), 3]), "nan"),
        (pa.array([1.5, float("inf"), 3]), "inf"),
    ):
        path = parquet(tmp_path / "log.parquet", clicked=column)
        with pytest.raises(BadData, match=rf"column 'clicked', row 2: must be a finite number, got '{value}'; correct"):
            table(path, label_type="number")
    path = parquet(tmp_path / "log.parquet", clicked=pa.array(["1", "2", "3"]))
    with pytest.raises(BadData, match=r"column 'clicked', row 1: must be a finite number, got '1'"):
        table(path, label_type="number")


def test_errors_in_parquet_name_the_column_and_the_row(tmp_path):
    for columns, message, *options in (
        ({"clicked": pa.array([0, 1, 2])}, r"column 'clicked', row 3: must be 0 or 1, got '2'; .*option 'positive'"),
        ({"clicked": pa.array(["+", "-", "+"])}, r"column 'clicked', row 1: must be 0 or 1, got '\+'"),
        ({"clicked": pa.array([0, 1, None])}, r"column 'clicked', row 3: must be 0 or 1"),
        ({"clicked": pa.array(["+", None, "+"])}, r"column 'clicked', row 2: must not be missing", {"positive": "+"}),
        (
            {"clicked": pa.array([0, 1, 2])},
            r"option 'positive' must be a value of column 'clicked', which holds int64, got 'yes'",
            {"positive": "yes"},
        ),
        ({"city": pa.array([1.5, 2, 3])}, r"categorical column 'city' must not hold fractions"),
        ({"age": pa.array(["1", "2", "3"])}, r"numeric column 'age' must hold numbers, got string; list it under"),
    ):
        with pytest.raises(BadData, match=message):
            table(parquet(tmp_path / "log.parquet", **columns), **dict(*options))


def test_damaged_parquet_is_an_error(tmp_path):
    path = parquet(tmp_path / "log.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadData, match=r"log.parquet: cannot be read .*write or copy the file again"):
        table(path)
    with pytest.raises(BadData, match=r"no column 'town'; there are \['at', "):
        table(parquet(tmp_path / "log.parquet"), categorical=["town"])
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        archive.write(tmp_path / "log.parquet", "log.parquet")
    with pytest.raises(BadData, match=r"log.zip:log.parquet: must not be Parquet in a zip; unzip it"):
        table(tmp_path / "log.zip")


def test_errors_in_text_name_the_line(tmp_path):
    for text, message in (
        (
            TEXT.replace(",0,", ",no,"),
            r"line 3: column 'clicked' must be 0 or 1, got 'no'; .*'positive' .*'label_type'",
        ),
        (TEXT.replace("4.5", "old"), r"line 2: column 'age' must be a number, got 'old'.*'missing'"),
        (TEXT.replace("15,1", "noon,1"), r"line 4: column 'at' must be a whole number, got 'noon'"),
        (TEXT.replace("15,1", ",1"), r"line 4: column 'at' is missing"),
        (TEXT.replace("15,1", "1,5,1"), r"line 4: must have 6 values, has 7, .*option 'delimiter'"),
        (TEXT.replace(",", ";"), r"line 1: no column 'clicked', .*\(separated by ','\)"),
        (TEXT.replace("Rome", '"Rome'), r"line 2: malformed quotes"),
    ):
        with pytest.raises(BadData, match=f"log.csv, {message}"):
            table(put(tmp_path / "log.csv", text))
    with pytest.raises(BadData, match=r"log.csv: is empty"):
        table(put(tmp_path / "log.csv", ""))


def test_wrong_options_are_refused_before_anything_is_read(tmp_path):
    for option, value, message in (
        ("categorical", "city", "must be a list of texts, got 'city'"),
        ("label_type", "float", "must be one of binary, number, got 'float'"),
        ("positive", True, "must be a text or a whole number or null, got true"),
        ("delimiter", "::", "must be one character, got '::'"),
        ("separator", "", "must be at least one character, got ''"),
        ("encoding", "utf-16", "must be an encoding that Python knows and that extends ASCII .*, got 'utf-16'"),
    ):
        with pytest.raises(ValueError, match=f"^options: {option} {message}$"):
            checked_options([read], {"label": "clicked", option: value}, "options")
    path = put(tmp_path / "log.csv", TEXT)
    with pytest.raises(ValueError, match=r"no column may be named twice, got \['city'\]"):
        read(path, label="clicked", categorical=["city"], numeric=["city"])
    with pytest.raises(ValueError, match="positive must be null if label_type is number, got 'yes'"):
        read(path, label="clicked", label_type="number", positive="yes")


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
