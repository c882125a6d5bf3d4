import datetime
import re
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.datasets import flights_3m
from pipeline.sources.source import BadData, NotFound

REAL = Path(__file__).parents[2] / "../shared/data"
MOMENTS = [
    datetime.datetime(2001, 1, 1, 0, 1),
    datetime.datetime(2001, 6, 30, 23, 59, 30, 500_000),
    datetime.datetime(2001, 2, 28, 12, 30),
]
COLUMNS = {
    "date": pa.array(MOMENTS, pa.timestamp("us")),
    "delay": pa.array([16, 15, -13]),
    "distance": pa.array([2176, 215, 405]),
    "origin": pa.array(["LAS", "ATL", "MCI"], pa.large_string()),
    "destination": pa.array(["PHL", "SAV", "MDW"], pa.large_string()),
}
EXPECTED = {
    "label": [1, 0, 0],
    "time": [978_307_260, 993_945_570, 983_363_400],
    "origin": ["LAS", "ATL", "MCI"],
    "destination": ["PHL", "SAV", "MDW"],
    "route": ["LAS-PHL", "ATL-SAV", "MCI-MDW"],
    "route_hour": ["LAS-PHL 0", "ATL-SAV 23", "MCI-MDW 12"],
    "distance": [2176, 215, 405],
    "minute": [1, 1439, 750],
    "date": ["2001-01-01", "2001-06-30", "2001-02-28"],
    "day": [1, 30, 28],
    "hour": [0, 23, 12],
    "weekday": [0, 5, 2],  # Monday, Saturday, Wednesday
    "month": [1, 6, 2],
}


def put(folder, **columns):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({**COLUMNS, **columns}), folder / "flights-3m.parquet", row_group_size=2)
    return folder


def table(source):
    return pa.Table.from_batches(source.batches).to_pydict()


def test_flights_by_hand(tmp_path):
    source = flights_3m.read(put(tmp_path))
    assert table(source) == EXPECTED
    assert list(source.fields) == list(EXPECTED)[2:] and len(source.fields) == 11


def test_the_file_and_folders_with_it_read_alike(tmp_path):
    folder = put(tmp_path / "flights-3m")
    for path in (folder, tmp_path, folder / "flights-3m.parquet"):
        assert table(flights_3m.read(path)) == EXPECTED


def test_the_day_can_be_left_out_of_the_fields(tmp_path):
    source = flights_3m.read(put(tmp_path), date=False)
    assert "date" not in source.fields
    assert table(source) == {name: values for name, values in EXPECTED.items() if name != "date"}


def test_other_types_of_the_same_kind_read_alike(tmp_path):
    whole = [moment.replace(microsecond=0) for moment in MOMENTS]
    columns = {
        "date": pa.array(whole, pa.timestamp("s")),
        "delay": COLUMNS["delay"].cast(pa.int16()),
        "origin": COLUMNS["origin"].cast(pa.string()).dictionary_encode(),
    }
    assert table(flights_3m.read(put(tmp_path, **columns))) == EXPECTED


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"delay": pa.array([1.5, 2, 3])}, "column 'delay' must hold whole numbers, got double; get vega-datasets"),
        ({"date": pa.array([1, 2, 3])}, "column 'date' must hold timestamps, got int64"),
        ({"origin": pa.array([1, 2, 3])}, "column 'origin' must hold text, got int64"),
        ({"delay": pa.array([1, 2, None])}, "column 'delay', row 3: is missing; fill it in or remove the row"),
    ],
)
def test_errors_name_the_column_and_the_row(tmp_path, columns, message):
    with pytest.raises(BadData, match=re.escape(message)):
        table(flights_3m.read(put(tmp_path, **columns)))


def test_a_damaged_or_wrong_file_is_an_error(tmp_path):
    path = put(tmp_path) / "flights-3m.parquet"
    with zipfile.ZipFile(tmp_path / "flights.zip", "w") as archive:
        archive.write(path, path.name)
    with pytest.raises(BadData, match=r"must not be Parquet in a zip; unzip it"):
        flights_3m.read(tmp_path / "flights.zip")
    pq.write_table(pa.table({"delay": [1]}), path)
    with pytest.raises(BadData, match=r"no column 'date', 'distance', 'origin', 'destination'; there are \['delay'\]"):
        table(flights_3m.read(path))
    put(tmp_path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadData, match=r"flights-3m.parquet: cannot be read .*write or copy the file again"):
        table(flights_3m.read(path))
    path.write_text("date,delay\n")
    with pytest.raises(BadData, match=r"flights-3m.parquet: is not Parquet; get vega-datasets 3.2.1"):
        flights_3m.read(path)


def test_the_error_for_missing_data_says_where_to_get_them(tmp_path):
    with pytest.raises(NotFound, match=r"no flights-3m.parquet .*npm pack vega-datasets.* into data/flights-3m"):
        flights_3m.read(tmp_path)


@pytest.mark.skipif(not (REAL / "flights-3m").exists(), reason="the data are not here")
def test_the_real_flights_have_the_published_counts():
    source = flights_3m.read(REAL / "flights-3m")
    found = pa.Table.from_batches(source.batches)
    assert len(found) == 3_000_000
    assert round(pc.mean(found["label"]).as_py(), 4) == 0.1997
    distinct = [pc.count_distinct(found[name]).as_py() for name in source.fields]
    assert distinct == [229, 228, 3399, 41135, 1109, 1410, 182, 31, 24, 7, 7]
