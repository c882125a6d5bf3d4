"""Which rows of a table are read."""

import gzip
import random
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.datasets.table import ENDINGS
from pipeline.describing import excerpt
from pipeline.describing.excerpt import Rows
from pipeline.describing.layout import layout_of
from pipeline.sources.files import table_files
from pipeline.sources.source import BadData

HEADER = "row,text\n"


def lines(first: int, count: int) -> str:
    return "".join(f"{row},{'x' * (row % 7)}\n" for row in range(first, first + count))


def read(path: Path) -> Rows:
    text = excerpt.text(table_files(path, ENDINGS))
    return excerpt.read_text(text, layout_of(text).of(text))


def numbers(rows: Rows) -> list[int]:
    return [int(number) for number in rows.table["row"].to_pylist()]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excerpt, "ROWS", 80)


def test_a_table_that_is_not_large_is_read_to_its_end(tmp_path: Path) -> None:
    for name, text in (("log.csv", HEADER + lines(0, 50)), ("open.csv", (HEADER + lines(0, 50)).rstrip("\n"))):
        (tmp_path / name).write_text(text)
        rows = read(tmp_path / name)
        assert numbers(rows) == list(range(50)) and rows.whole and rows.total == 50


@pytest.mark.usefixtures("small")
def test_a_large_text_is_read_in_whole_lines_from_several_places(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEADER + lines(0, 10_000))
    rows = read(tmp_path / "log.csv")
    seen = numbers(rows)
    assert seen == sorted(set(seen)) and seen[0] == 0 and seen[-1] > 8000 and 50 < len(seen) <= 80
    assert len({number // 1000 for number in seen}) >= 7
    assert not rows.whole and rows.total == pytest.approx(10_000, rel=0.2)
    assert rows.table["text"].to_pylist() == [("x" * (number % 7)) or None for number in seen]


@pytest.mark.usefixtures("small")
def test_the_start_of_a_packed_text_is_read(tmp_path: Path) -> None:
    text = (HEADER + lines(0, 10_000)).encode()
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(tmp_path / "log.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("log.csv", text)
    for name in ("log.csv.gz", "log.zip"):
        rows = read(tmp_path / name)
        assert numbers(rows) == list(range(len(rows.table))) and 50 < len(rows.table) < 150
        assert not rows.whole and rows.total == pytest.approx(10_000, rel=0.4)


def test_the_size_of_a_large_gzipped_text_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excerpt, "HEAD_BYTES", 4096)
    monkeypatch.setattr(excerpt, "ROWS", 500)
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress((HEADER + lines(0, 50_000)).encode(), 6))
    assert read(tmp_path / "log.csv.gz").total == pytest.approx(50_000, rel=0.5)


def test_part_files_are_read_in_the_order_of_their_names_each_without_its_header(tmp_path: Path) -> None:
    for part in (2, 0, 1):
        (tmp_path / f"part-{part}.csv").write_text(HEADER + lines(part * 30, 30))
    (tmp_path / "_SUCCESS").touch()
    assert numbers(read(tmp_path)) == list(range(90))


@pytest.mark.usefixtures("small")
def test_a_part_of_large_part_files_is_read_from_all_of_them(tmp_path: Path) -> None:
    for part in range(4):
        (tmp_path / f"part-{part}.csv").write_text(HEADER + lines(part * 1000, 1000))
    rows = read(tmp_path)
    assert {number // 1000 for number in numbers(rows)} == {0, 1, 2, 3}
    assert rows.total == pytest.approx(4000, rel=0.2)


@pytest.mark.usefixtures("small")
def test_parquet_is_read_from_several_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row": range(1000)}), tmp_path / "log.parquet", row_group_size=50)
    rows = excerpt.read_parquet(table_files(tmp_path / "log.parquet", ENDINGS))
    assert (len(rows.table), rows.total, rows.whole) == (80, 1000, False)
    assert len({number // 50 for number in numbers(rows)}) == 8
    pq.write_table(pa.table({"row": range(60)}), tmp_path / "log.parquet", row_group_size=7)
    rows = excerpt.read_parquet(table_files(tmp_path / "log.parquet", ENDINGS))
    assert numbers(rows) == list(range(60)) and rows.whole


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for text in (b"", b"\n\n"):
        (tmp_path / "log.csv").write_bytes(text)
        with pytest.raises(BadData, match=r"log.csv: is empty"):
            read(tmp_path / "log.csv")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress((HEADER + lines(0, 9999)).encode())[:-500])
    with pytest.raises(BadData, match=r"log.csv.gz: cannot be read"):
        read(tmp_path / "log.csv.gz")
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(BadData, match=r"no two columns may have the same name, got \['a'\]"):
        excerpt.read_parquet(table_files(tmp_path / "log.parquet", ENDINGS))


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_that_the_reader_refuses_is_refused(tmp_path: Path, packed: bool) -> None:
    content = b"n,m\n1,2\n" + b"1" * (3 << 20)
    path = tmp_path / ("log.csv.gz" if packed else "log.csv")
    path.write_bytes(gzip.compress(content) if packed else content + b"1" * (200 << 20))
    with pytest.raises(BadData, match=r"log\.csv.* 1,048,576 bytes.*; add the missing line end"):
        read(path)


def test_no_more_of_a_gzipped_text_is_read_than_an_excerpt_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    monkeypatch.setattr(excerpt, "HEAD_BYTES", 1 << 16)  # which packs badly, unlike the rest
    head = "".join(f"{rng.random()},{rng.random()}\n" for _ in range(2000))
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(("n,m\n" + head + "1,2\n" * 4_000_000).encode()))
    rows = read(path)
    assert not rows.whole and len(rows.table) < 2_000_000
