import gzip
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.datasets import movielens_1m, movielens_100k
from pipeline.sources.raw import write_raw
from pipeline.sources.source import BadData, NotFound
from pipeline.workflow.validation import checked_options

REAL = Path(__file__).parents[2] / "../shared/data"
ML_1M = {
    "ratings.dat": b"1::10::5::978300760\n1::20::3::978300761\n2::10::4::978300762\n2::30::1::978300763\n",
    "users.dat": b"1::F::1::10::48067\n2::M::56::16::70072-1234\n",
    "movies.dat": "10::Am\xe9lie: a :: story (2001)::Comedy|Drama\n20::Untitled::War\n30::X (1) (1999)::Drama\n".encode(
        "latin-1"
    ),
}
FLAGS = {"Comedy|Drama": "0|0|0|0|0|1|0|0|1|0|0|0|0|0|0|0|0|0|0", "War": "|".join(["0"] * 17 + ["1", "0"])}
ML_100K = {
    "u.data": b"1\t10\t5\t881250949\n1\t20\t3\t881250950\n2\t10\t4\t881250951\n",
    "u.user": b"1|24|M|technician|85711\n2|53|F|other|T8H1N\n",
    "u.item": (
        f"10|Am\xe9lie (2001)|01-Jan-2001||http://x|{FLAGS['Comedy|Drama']}\n20|unknown||||{FLAGS['War']}\n"
    ).encode("latin-1"),
}


def put(folder, files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text)
    return folder


def table(source):
    return pa.Table.from_batches(source.batches).to_pydict()


def test_1m_by_hand(tmp_path):
    source = movielens_1m.read(put(tmp_path / "in", ML_1M))
    assert list(source.fields) == ["movie", "year", "genres", "user", "gender", "age", "occupation", "zip"]
    assert source.fields["genres"] == "bag"
    assert table(source) == {
        "label": [1, 0, 1, 0],
        "time": [978300760, 978300761, 978300762, 978300763],
        "movie": [10, 20, 10, 30],
        "year": [2001, None, 2001, 1999],
        "genres": [["Comedy", "Drama"], ["War"], ["Comedy", "Drama"], ["Drama"]],
        "user": [1, 1, 2, 2],
        "gender": ["F", "F", "M", "M"],
        "age": [1, 1, 56, 56],
        "occupation": ["10", "10", "16", "16"],
        "zip": ["48067", "48067", "70072-1234", "70072-1234"],
    }


def test_100k_by_hand(tmp_path):
    found = table(movielens_100k.read(put(tmp_path / "in", ML_100K)))
    assert found["label"] == [1, 0, 1]
    assert found["year"] == [2001, None, 2001]
    assert found["genres"] == [["Comedy", "Drama"], ["War"], ["Comedy", "Drama"]]
    assert found["age"] == [24, 24, 53]
    assert found["occupation"] == ["technician", "technician", "other"]
    assert found["zip"] == ["85711", "85711", "T8H1N"]


def test_options_change_the_threshold_and_join_the_genres(tmp_path):
    folder = put(tmp_path / "in", ML_1M)
    found = table(movielens_1m.read(folder, threshold=5, genres="joined"))
    assert found["label"] == [1, 0, 0, 0]
    assert found["genres"] == ["Comedy|Drama", "War", "Comedy|Drama", "Drama"]
    for module in (movielens_1m, movielens_100k):
        with pytest.raises(ValueError, match="genres must be one of bag, joined, got 'list'"):
            checked_options([module.read], {"genres": "list"}, "options")
        with pytest.raises(ValueError, match="threshold must be a number above 1 and at most 5, got 1"):
            checked_options([module.read], {"threshold": 1}, "options")


def test_implicit_feedback_keeps_high_ratings_and_counts_the_others(tmp_path):
    folder = put(tmp_path / "in", ML_1M)
    labelled = table(movielens_1m.read(folder))
    del labelled["label"]
    source = movielens_1m.read(folder, implicit=True)
    record = write_raw(source, tmp_path / "table.parquet")
    kept = pq.read_table(tmp_path / "table.parquet").to_pydict()
    assert kept == {name: [values[0], values[2]] for name, values in labelled.items()}
    assert record["notes"] == ["2 ratings below 4 are left out: they are no interactions"]
    assert record["interactions"]["keys"] == {"user": "user", "item": "movie"}
    roles = record["interactions"]["roles"]
    assert {name for name, role in roles.items() if role == "item"} == {"movie", "year", "genres"}
    assert record["label"] is None and record["time"] is True and record["facts"] == {"time_unit": "s"}
    for module, files in ((movielens_1m, ML_1M), (movielens_100k, ML_100K)):
        five = module.read(put(tmp_path / module.__name__, files), implicit=True, threshold=5, genres="joined")
        assert table(five)["genres"] == ["Comedy|Drama"]


def test_implicit_feedback_without_a_high_rating_is_refused(tmp_path):
    folder = put(tmp_path / "in", {**ML_1M, "ratings.dat": b"1::10::2::1\n"})
    with pytest.raises(BadData, match="there are no rows; give data with interactions"):
        write_raw(movielens_1m.read(folder, implicit=True), tmp_path / "table.parquet")


def test_the_publishers_zip_and_gzipped_files_read_alike(tmp_path):
    expected = table(movielens_1m.read(put(tmp_path / "plain", ML_1M)))
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        for name, text in {**ML_1M, "README": b"hello"}.items():
            archive.writestr(f"ml-1m/{name}", text)
    put(tmp_path / "gz", {f"{name}.gz": gzip.compress(text) for name, text in ML_1M.items()})
    for path in (tmp_path / "ml-1m.zip", tmp_path, tmp_path / "gz"):
        assert table(movielens_1m.read(path)) == expected


def test_errors_in_a_file_name_the_line(tmp_path):
    good = b"1::10::5::1\n"
    for name, text, message in (
        ("ratings.dat", good + b"1::10::6::1\n", r", line 2: column 'rating' must be 1, 2, 3, 4 or 5, got '6'"),
        ("ratings.dat", good + b"9::10::5::1\n", r", line 2: column 'user' must be in the file of users, got '9'"),
        ("ratings.dat", good + b"1::99::5::1\n", r", line 2: column 'movie' must be in the file of movies, got '99'"),
        ("ratings.dat", good + b"1::10::5\n", r", line 2: must have 4 values, has 3"),
        ("ratings.dat", good + b"1::1:0::5::1\n", r", line 2: column 'movie' must be in the file of movies, got '1:0'"),
        ("ratings.dat", b"", r": is empty"),
        ("users.dat", b"1::F::young::10::48067\n", r", line 1: column 'age' must be a whole number, got 'young'"),
        ("movies.dat", b"10::X (1999)\n", r", line 1: must be movie::title::genres, got '10::X \(1999\)'"),
        ("movies.dat", b"", r": is empty"),
    ):
        with pytest.raises(BadData, match=name + message):
            table(movielens_1m.read(put(tmp_path / "in", {**ML_1M, name: text})))
    flags = ML_100K["u.item"].replace(b"|0\n", b"\n", 1)
    with pytest.raises(BadData, match=r"u.item, line 1: must be a movie's number, title, dates, address and 19 flags"):
        table(movielens_100k.read(put(tmp_path / "100k", {**ML_100K, "u.item": flags})))


def test_the_error_for_missing_files_says_where_to_get_them(tmp_path):
    with pytest.raises(NotFound, match=r"no users.dat or users.dat.gz in .*; set dataset.path"):
        movielens_1m.read(put(tmp_path / "in", {name: text for name, text in ML_1M.items() if name != "users.dat"}))
    with pytest.raises(BadData, match="is a single file, but MovieLens has three"):
        movielens_1m.read(tmp_path / "in" / "ratings.dat")


@pytest.mark.skipif(not (REAL / "ml-1m").exists(), reason="the data are not here")
def test_1m_has_the_cardinalities_of_the_papers_case_study():
    found = pa.Table.from_batches(movielens_1m.read(REAL / "ml-1m", genres="joined").batches)
    fields = found.drop_columns(["label", "time"])
    distinct = {name: pc.count_distinct(fields[name], mode="all").as_py() for name in fields.column_names}
    assert list(distinct.values()) == [3706, 81, 301, 6040, 2, 7, 21, 3439]
    assert len(found) == 1_000_209
    assert round(pc.mean(found["label"]).as_py(), 3) == 0.575


@pytest.mark.skipif(not (REAL / "ml-100k").exists(), reason="the data are not here")
def test_100k_has_the_published_counts():
    found = pa.Table.from_batches(movielens_100k.read(REAL / "ml-100k").batches)
    assert len(found) == 100_000
    assert pc.count_distinct(found["user"]).as_py() == 943
    assert pc.count_distinct(found["movie"]).as_py() == 1682
    assert pc.count_distinct(found["occupation"]).as_py() == 21
    assert pc.max(pc.list_value_length(found["genres"])).as_py() == 6
    assert round(pc.mean(found["label"]).as_py(), 3) == 0.554
