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


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()])
def test_a_label_of_parquet_may_have_any_type_of_numbers(tmp_path, kind):
    label = pa.array([1, 0, 1]).cast(pa.bool_() if kind == pa.bool_() else pa.float32()).cast(kind)
    pq.write_table(pa.table({"clicked": label, "city": ["a", "b", "c"]}), tmp_path / "log.parquet")
    source = read(tmp_path / "log.parquet", label="clicked", categorical=["city"])
    assert pa.Table.from_batches(source.batches)["label"].to_pylist() == [1, 0, 1]


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
        (
            {"clicked": pa.array(["+", "-", "+"])},
            r"column 'clicked', row 1: must be 0 or 1, or false or true, or no or yes, got '\+'",
        ),
        ({"clicked": pa.array([0, 1, None])}, r"column 'clicked', row 3: is missing; fill it in"),
        ({"clicked": pa.array(["+", None, "+"])}, r"column 'clicked', row 2: is missing", {"positive": "+"}),
        (
            {"clicked": pa.array([0, 1, 2])},
            r"column 'clicked' must hold the value of the option 'positive', got 'yes'; the column holds 1 row '0'",
            {"positive": "yes"},
        ),
        ({"city": pa.array([2, 1.5, 3])}, r"column 'city', row 2: must be a whole number that fits int64, got '1.5'"),
        ({"age": pa.array(["1", "2", "3"])}, r"column 'age' must hold numbers as numeric, got 'string'; list it under"),
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


@pytest.mark.parametrize("form", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_text_of_parquet_may_be_no_longer_than_a_line(tmp_path, form):
    longest = "x" * (1 << 20)
    cities = pa.array(["Rome", longest, None]).cast(form)
    assert table(parquet(tmp_path / "log.parquet", city=cities))["city"] == ["Rome", longest, None]
    cities = pa.array(["Rome", None, longest + "x"]).cast(form)
    with pytest.raises(BadData, match=r"column 'city'(, row 3:)? must be at most 1,048,576 bytes long, got 'xxx"):
        table(parquet(tmp_path / "log.parquet", city=cities))


def test_errors_in_text_name_the_line(tmp_path):
    for text, message in (
        (
            TEXT.replace(",0,", ",no,"),
            r"line 3: column 'clicked' must be 0 or 1, got 'no'; .*'positive' .*'label_type'",
        ),
        (TEXT.replace("4.5", "old"), r"line 2: column 'age' must be a number, got 'old'.*'missing'"),
        (
            TEXT.replace("15,1", "noon,1"),
            r"line 4: column 'at' must be a whole number, like the first value, got 'noon'",
        ),
        (TEXT.replace("15,1", ",1"), r"line 4: column 'at' is missing"),
        (TEXT.replace("15,1", "1,5,1"), r"line 4: must have 6 values, has 7, .*option 'delimiter'"),
        (TEXT.replace(",", ";"), r"line 1: no column 'clicked', .*separated by ';': set the option 'delimiter'"),
        (TEXT.replace("clicked", "click"), r"line 1: no column 'clicked'; there are .*\(separated by ','\)"),
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
        ("positive", datetime.date(2024, 1, 31), r"must be a text or .*, got datetime.date.*; write it in quotes"),
        ("label", 5, "must be a text or null, got 5; write it in quotes"),
        ("delimiter", "::", "must be one character, got '::'"),
        ("separator", "", "must be at least one character, got ''"),
        ("encoding", "utf-16", "must be an encoding that Python knows and that extends ASCII .*, got 'utf-16'"),
    ):
        with pytest.raises(ValueError, match=f"^options: {option} {message}$"):
            checked_options([read], {"label": "clicked"} | {option: value}, "options")
    path = put(tmp_path / "log.csv", TEXT)
    with pytest.raises(ValueError, match=r"no column may be named twice, got \['city'\]"):
        read(path, label="clicked", categorical=["city"], numeric=["city"])
    for dates, message in (
        ({"city": ["hour"]}, r"no column may be named twice, got \['city'\]"),
        ({"at": []}, r"dates.at must name at least one part, and none twice, got \[\]"),
        ({"at": ["hour", "hour"]}, "dates.at must name at least one part, and none twice"),
    ):
        with pytest.raises(ValueError, match=message):
            read(path, label="clicked", categorical=["city"], dates=dates)
    with pytest.raises(ValueError, match=r"dates.at makes a field 'at_day', but the file has a column of this name"):
        read(path, label="clicked", categorical=["at_day"], dates={"at": ["day"]})
    with pytest.raises(ValueError, match="positive must be null if label_type is number, got 'yes'"):
        read(path, label="clicked", label_type="number", positive="yes")


def rows_and_notes(path, **options):
    source = read(path, **{"label": "y", **options})
    rows = pa.Table.from_batches(source.batches).to_pydict()
    return rows, source.notes


def test_labels_are_read_in_any_spelling_of_their_pair(tmp_path):
    for no, yes in (("0", "1"), ("0.0", "1.0"), ("0", "1.0"), ("false", "TRUE"), ("No", "yes")):
        path = put(tmp_path / "log.csv", f"y,c\n{yes},a\n {no} ,b\n{yes},c\n")
        rows, notes = rows_and_notes(path, categorical=["c"])
        assert rows["label"] == [1, 0, 1]
        assert notes == ([] if (no, yes) == ("0", "1") else [f"label 'y': 2 rows '{yes}' -> 1, 1 row '{no}' -> 0"])
    for column in (pa.array([1.0, 0.0]), pa.array([decimal.Decimal(1), decimal.Decimal(0)]), pa.array(["Yes", "no"])):
        pq.write_table(pa.table({"y": column, "c": ["a", "b"]}), tmp_path / "log.parquet")
        assert rows_and_notes(tmp_path / "log.parquet", categorical=["c"])[0]["label"] == [1, 0]
    with pytest.raises(BadData, match=r"line 3: column 'y' must be no or yes, got '0'"):
        rows_and_notes(put(tmp_path / "log.csv", "y,c\nyes,a\n0,b\n"), categorical=["c"])


def test_every_spelling_of_the_positive_value_means_1_and_the_others_are_counted(tmp_path):
    path = put(tmp_path / "log.csv", "y,c\nBuy,a\nbuy,b\nlook,c\nlook,d\nleave,e\n")
    rows, notes = rows_and_notes(path, positive="BUY", categorical=["c"])
    assert rows["label"] == [1, 1, 0, 0, 0]
    assert notes == ["label 'y': 1 row 'Buy', 1 row 'buy' -> 1, 2 rows 'look', 1 row 'leave' -> 0"]
    path = put(tmp_path / "log.csv", "y,c\n2,a\n2.0,b\n3,c\n")
    assert rows_and_notes(path, positive=2, categorical=["c"])[0]["label"] == [1, 1, 0]
    with pytest.raises(BadData, match=r"log.csv: column 'y' must hold .*'positive', got 'no'; .*positive: \"2\""):
        rows_and_notes(path, positive="no", categorical=["c"])


def test_whole_numbers_stored_as_decimals_or_floats_stay_apart_or_are_refused(tmp_path):
    path, large = tmp_path / "log.parquet", 10**17

    def ids(column):
        pq.write_table(pa.table({"y": [0, 1, 1], "c": column}), path)
        return rows_and_notes(path, categorical=["c"])[0]["c"]

    numbers = [large + 1, large + 2, large + 3]
    assert ids(pa.array([decimal.Decimal(number) for number in numbers])) == numbers
    assert ids(pa.array([7.0, float("nan"), 8.0])) == [7, None, 8]
    assert ids(pa.nulls(3)) == [None] * 3
    for column, message in (
        (pa.array([decimal.Decimal(10) ** 20] * 3), "column 'c', row 1: must be a whole number that fits int64, got"),
        (
            pa.array([1.0, 2.0, 1e17]),
            r"column 'c', row 3: must be below 9,007,199,254,740,992, .*; store the column as",
        ),
        (pa.array([1, 2, 2**24], pa.float32()), "column 'c', row 3: must be below 16,777,216"),
        (pa.array([1, 2, 2**11], pa.float16()), "column 'c', row 3: must be below 2,048"),
        (pa.array([1, 2, 3], pa.date32()), r"column 'c' must hold text or whole numbers .*'dates', as in dates: {c: "),
        (pa.array([[1]] * 3), "column 'c' must hold text or whole numbers"),
    ):
        with pytest.raises(BadData, match=message):
            ids(column)


def test_values_of_a_bag_of_text_are_stripped_and_empty_ones_dropped_and_counted(tmp_path):
    path = put(tmp_path / "log.csv", "y,b\n0,jazz|folk\n1, jazz | folk\n1,|jazz||?\n0,?\n")
    rows, notes = rows_and_notes(path, bag=["b"], missing=["?"])
    assert rows["b"] == [["jazz", "folk"], ["jazz", "folk"], ["jazz"], None]
    assert notes == ["bag 'b': dropped 3 empty or missing values within bags"]
    pq.write_table(pa.table({"y": [0, 1], "b": pa.array([[1.0, float("nan")], None])}), tmp_path / "log.parquet")
    rows, notes = rows_and_notes(tmp_path / "log.parquet", bag=["b"])
    assert rows["b"] == [["1"], None] and notes == ["bag 'b': dropped 1 empty or missing values within bags"]
    pq.write_table(pa.table({"y": [0, 1], "b": [[{"x": 1}], [{"x": 2}]]}), tmp_path / "log.parquet")
    with pytest.raises(BadData, match="column 'b' must hold lists of texts or numbers, got 'list<"):
        rows_and_notes(tmp_path / "log.parquet", bag=["b"])


MOMENT = datetime.datetime(2024, 2, 29, 23, 30, tzinfo=datetime.UTC)  # a Thursday
SECONDS = int(MOMENT.timestamp())


def test_times_in_every_form_order_the_rows_and_give_the_same_parts(tmp_path):
    wanted = {"year": 2024, "month": 2, "day": 29, "hour": 23, "weekday": 3, "date": "2024-02-29"}
    options = {"time": "t", "dates": {"t": [*wanted]}}
    for text in (str(SECONDS), "2024-02-29 23:30", "2024-02-29T23:30:00.5", "2024-03-01T01:30:00+02:00"):
        later = str(SECONDS + 3600) if text.isdecimal() else text.replace(":30", ":40", 1)
        rows, _ = rows_and_notes(put(tmp_path / "log.csv", f"y,t\n0,{later}\n1,{text}\n"), **options)
        assert rows["time"][0] > rows["time"][1]
        assert {part: rows[f"t_{part}"][1] for part in wanted} == wanted, text
    for column in (
        pa.array([MOMENT], pa.timestamp("ms")),
        pa.array([MOMENT], pa.timestamp("ns", "UTC")),
        pa.array([SECONDS - 3600], pa.timestamp("s", "Europe/Paris")),
        pa.array([SECONDS]),
        pa.array(["2024-02-29T23:30:00Z"]),
    ):
        pq.write_table(pa.table({"y": [1], "t": column}), tmp_path / "log.parquet")
        rows, _ = rows_and_notes(tmp_path / "log.parquet", **options)
        assert {part: rows[f"t_{part}"][0] for part in wanted} == wanted, column.type
    for column in (pa.array([1, 2], pa.date32()), pa.array([1, 2], pa.time32("s")), pa.array([1, 2], pa.time64("us"))):
        pq.write_table(pa.table({"y": [0, 1], "t": column, "c": ["a", "b"]}), tmp_path / "log.parquet")
        first, second = rows_and_notes(tmp_path / "log.parquet", time="t", categorical=["c"])[0]["time"]
        assert first < second


def test_times_that_do_not_fit_are_named(tmp_path):
    for text, message in (
        ("noon", r"line 3: column 't' must be a whole number or an ISO 8601 time, as in .*, got 'noon'"),
        ("2024-01-31\n1,2024-02-30", "line 4: column 't' must be an ISO 8601 time, .* without a zone .*'2024-02-30'"),
        ("2024-01-31\n1,2024-01-31T10:00Z", "line 4: column 't' must be .* without a zone .* like the first value"),
        (f"{SECONDS * 1000}", "line 3: column 't' must be Unix seconds up to the year 9999, .*not milliseconds"),
    ):
        with pytest.raises(BadData, match=message):
            rows_and_notes(put(tmp_path / "log.csv", f"y,t\n0,\n1,{text}\n"), dates={"t": ["day"]})
    pq.write_table(pa.table({"y": [0, 1], "t": pa.array([1, None], pa.date32())}), tmp_path / "log.parquet")
    with pytest.raises(BadData, match=r"column 't' has no hour, because it holds date32.*; remove the part"):
        rows_and_notes(tmp_path / "log.parquet", dates={"t": ["hour"]})
    large = pa.array([1, 2**63], pa.uint64())
    pq.write_table(pa.table({"y": [0, 1], "t": large, "c": ["a", "b"]}), tmp_path / "large.parquet")
    with pytest.raises(BadData, match="column 't', row 2: must fit int64, got 9223372036854775808"):
        rows_and_notes(tmp_path / "large.parquet", time="t", categorical=["c"])
    with pytest.raises(BadData, match="column 't', row 2: is missing"):
        rows_and_notes(tmp_path / "log.parquet", time="t", dates={"t": ["day"]})


def test_part_files_of_a_folder_are_one_table(tmp_path):
    (tmp_path / "text").mkdir()
    put(tmp_path / "text/part-0.csv", "y,c\nno,a\n")
    put(tmp_path / "text/part-1.csv", "c,y\nb,yes\n")
    put(tmp_path / "text/_SUCCESS.csv", "")
    rows, notes = rows_and_notes(tmp_path / "text", categorical=["c"])
    assert rows == {"label": [0, 1], "c": ["a", "b"]}
    assert notes[0].startswith("read 2 files, from ") and notes[1].startswith("label 'y': 1 row 'yes' -> 1")
    put(tmp_path / "text/part-2.csv", "c,z\nb,yes\n")
    with pytest.raises(
        BadData, match=r"part-2.csv: must have the columns \['y', 'c'\], like .*part-0.csv, .*remove it"
    ):
        rows_and_notes(tmp_path / "text", categorical=["c"])
    (tmp_path / "parquet").mkdir()
    for number, column in enumerate((pa.nulls(1), pa.array([3], pa.int32()), pa.array([4.0]), pa.array([2**40]))):
        pq.write_table(pa.table({"y": [number % 2], "c": column}), tmp_path / f"parquet/part-{number}.parquet")
    rows, _ = rows_and_notes(tmp_path / "parquet", categorical=["c"])
    assert rows == {"label": [0, 1, 0, 1], "c": [None, 3, 4, 2**40]}
    pq.write_table(pa.table({"y": [0], "c": ["x"]}), tmp_path / "parquet/part-4.parquet")
    with pytest.raises(BadData, match=r"part-4.parquet: column 'c' must hold int64, like .*, got \['string'\]"):
        rows_and_notes(tmp_path / "parquet", categorical=["c"])


def test_two_columns_of_the_same_name_are_refused(tmp_path):
    pq.write_table(pa.table([[0], ["a"], ["b"]], names=["y", "c", "c"]), tmp_path / "log.parquet")
    with pytest.raises(BadData, match=r"log.parquet: no two columns may have the same name, got \['c'\]"):
        rows_and_notes(tmp_path / "log.parquet", categorical=["c"])
    with pytest.raises(BadData, match=r"log.csv: no two columns may have the same name, got \['c'\]"):
        rows_and_notes(put(tmp_path / "log.csv", "0,a,b\n"), categorical=["c"], names=["y", "c", "c"])


def test_the_error_for_a_damaged_column_of_parquet_names_it(tmp_path):
    path = tmp_path / "log.parquet"
    columns = {"y": pa.array([0, 1] * 500), "c": pa.array([f"value {i}" for i in range(1000)])}
    pq.write_table(pa.table(columns), path, compression="snappy")
    place = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    damaged = bytearray(path.read_bytes())
    damaged[place : place + 60] = b"\xff" * 60
    path.write_bytes(damaged)
    with pytest.raises(BadData, match=r"log.parquet: column 'c' cannot be read"):
        rows_and_notes(path, categorical=["c"])


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
