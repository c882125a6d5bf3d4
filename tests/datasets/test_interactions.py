"""The layouts of LightGCN's public code, by hand and against the counts of published benchmarks."""

import gzip
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.datasets import interactions
from pipeline.sources.raw import write_raw
from pipeline.sources.source import BadData, NotFound

REAL = Path(__file__).parents[2] / "../shared/data"


def put(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def rows(path):
    table = pa.Table.from_batches(interactions.read(path).batches)
    return [tuple(row.values()) for row in table.select(["user", "item", "test"]).to_pylist()]


def test_a_line_holds_a_user_and_the_items(tmp_path):
    put(tmp_path, train="0 5 3\n7 5\n0 9\n", test="7 3 4\n")
    assert rows(tmp_path) == [(0, 5, 0), (0, 3, 0), (7, 5, 0), (0, 9, 0), (7, 3, 1), (7, 4, 1)]


def test_a_user_without_items_gives_no_row_and_is_counted(tmp_path):
    source = interactions.read(put(tmp_path, train="0 5\n1\n2 \n\n", test="0 6\n1\n"))
    record = write_raw(source, tmp_path / "table.parquet")
    assert record["rows"] == 2
    assert record["notes"] == [
        f"2 lines of {tmp_path}/train.txt name a user without items; they give no rows",
        f"1 lines of {tmp_path}/test.txt name a user without items; they give no rows",
    ]


def test_wrong_edges_are_new_pairs_of_what_is_there_and_the_same_each_time(tmp_path):
    lines = [" ".join(map(str, [user, *range(user % 3, 40, 4)])) for user in range(30)]
    put(tmp_path, train="\n".join(lines) + "\n", test="0 1 2\n5 0\n")
    given = rows(tmp_path)
    source = interactions.read(tmp_path, added=0.25)
    table = pa.Table.from_batches(source.batches)
    found = [tuple(row.values()) for row in table.select(["user", "item", "test"]).to_pylist()]
    training = len(given) - 3
    wrong = found[len(given) :]
    assert found[: len(given)] == given and len(wrong) == round(0.25 * training)
    pairs = {row[:2] for row in wrong}
    assert len(pairs) == len(wrong) and not pairs & {row[:2] for row in given} and {row[2] for row in wrong} == {0}
    assert {user for user, _ in pairs} <= set(range(30)) and {item for _, item in pairs} <= set(range(40))
    assert found == [
        tuple(row.values())
        for row in pa.Table.from_batches(interactions.read(tmp_path, added=0.25).batches).to_pylist()
    ]
    assert f"{len(wrong)} random interactions were added to the training rows" in source.notes
    with pytest.raises(BadData, match=r"(?s)leaves too few to add 4.*lower dataset.options.added"):
        list(interactions.read(put(tmp_path, train="0 1 2\n1 1 2 3\n", test="0 3\n"), added=0.8).batches)


def test_weights_are_left_out_with_a_note(tmp_path):
    put(tmp_path, data1="4\t7\t100\n4\t8\t1\n", test1="5\t7\t2.5\n")
    assert rows(tmp_path) == [(4, 7, 0), (4, 8, 0), (5, 7, 1)]
    notes = write_raw(interactions.read(tmp_path), tmp_path / "table.parquet")["notes"]
    assert [note.split("/")[-1] for note in notes] == [
        "data1.txt are left out: each row is one interaction",
        "test1.txt are left out: each row is one interaction",
    ]


def test_files_may_be_gzipped_or_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("inside/train.txt", "1 2\n")
        archive.writestr("inside/test.txt", "1 3\n")
    assert rows(tmp_path / "some.zip") == [(1, 2, 0), (1, 3, 1)]
    folder = tmp_path / "packed"
    folder.mkdir()
    for name, text in (("train", "1 2\n"), ("test", "1 3\n")):
        (folder / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert rows(folder) == [(1, 2, 0), (1, 3, 1)]


def test_the_batches_do_not_change_the_rows(tmp_path, monkeypatch):
    put(tmp_path, train="".join(f"{user} {user + 1} {user + 2}\n" for user in range(50)), test="3 1\n")
    whole = rows(tmp_path)
    monkeypatch.setattr(interactions, "BATCH_ROWS", 7)
    assert rows(tmp_path) == whole and len(whole) == 101


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "1_000", "9" * 19])
def test_a_value_that_is_no_number_is_named_with_its_line(tmp_path, value):
    put(tmp_path, train=f"0 1\n1 {value} 2\n", test="0 2\n")
    with pytest.raises(BadData, match=rf"train.txt, line 2: users and items must be whole numbers .*got '{value}'"):
        rows(tmp_path)


def test_a_weighted_line_with_a_missing_value_is_named(tmp_path):
    put(tmp_path, data1="4\t7\t1\n\t8\t1\n", test1="5\t7\t2\n")
    with pytest.raises(BadData, match=r"data1.txt, line 2"):
        rows(tmp_path)


def test_both_files_of_one_layout_must_be_there(tmp_path):
    with pytest.raises(NotFound, match=r"no test.txt or test.txt.gz .*holds train.txt and test.txt"):
        interactions.read(put(tmp_path, train="0 1\n", test1="0\t1\t2\n"))
    with pytest.raises(BadData, match="is a single file, but the benchmark has two"):
        interactions.read(tmp_path / "train.txt")


def test_a_part_without_rows_is_refused(tmp_path):
    put(tmp_path, train="0 1\n", test="0\n")
    with pytest.raises(BadData, match="the publisher's split has no test rows, and 1 training rows; check both files"):
        write_raw(interactions.read(tmp_path), tmp_path / "table.parquet")
    put(tmp_path, train="0\n", test="0\n")
    with pytest.raises(BadData, match="there are no rows; give data with interactions"):
        write_raw(interactions.read(tmp_path), tmp_path / "table.parquet")


@pytest.mark.parametrize(
    ("folder", "train", "test", "users", "items"),
    [
        ("gowalla", 810_128, 217_242, 29_858, 40_981),
        ("ml-1m-ultragcn", 796_244, 99_455, 6_022, 3_043),
        ("amazon-cds", 604_475, 172_951, 43_169, 35_648),
        ("lastfm-lightgcn", 42_135, 10_533, 1_880, 4_489),
    ],
)
def test_the_published_counts(folder, train, test, users, items):
    if not (REAL / folder).is_dir():
        pytest.skip("the published files are not here")
    table = pa.Table.from_batches(interactions.read(REAL / folder).batches)
    given = table["test"].to_numpy()
    assert (int((given == 0).sum()), int(given.sum())) == (train, test)
    assert len(table["user"].unique()) == users and len(table["item"].unique()) == items
