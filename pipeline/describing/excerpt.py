"""Reads a part of a table, spread over its files: enough to judge its columns by, and little enough to read at once."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources import parquet
from pipeline.sources.delimited import Column, Delimited, check_distinct
from pipeline.sources.files import DAMAGE, GZIP_MARK, LONGEST_LINE, DataFile
from pipeline.sources.source import BadData

ROWS = 200_000  # the most rows of an excerpt
BYTES = 64 << 20  # the most bytes of an excerpt of text
PIECES = 8  # places of a file, or files of a folder, from which an excerpt is taken
HEAD_BYTES = 1 << 20  # of text by which the length of a line, and how well the text packs, are judged
Item = TypeVar("Item")


@dataclass(frozen=True)
class Excerpt(DataFile):
    """Whole lines of text files, in memory; it can be read like a file. The first line is that of the first file.

    Args:
        content: the lines.
        whole: whether these are all lines of the files.
        size: bytes of all lines of the files; for gzipped files an estimate.
    """

    content: bytes = b""
    whole: bool = True
    size: int = 0

    def __str__(self) -> str:
        return super().__str__() + ("" if self.whole else " (excerpt)")

    @contextlib.contextmanager
    def open(self) -> Iterator[pa.NativeFile]:
        yield pa.BufferReader(self.content)


@dataclass(frozen=True)
class Rows:
    """Rows of a table.

    Args:
        table: columns of text, or with the types of a Parquet file.
        total: number of rows of the whole table; an estimate for text that was not read to its end.
        whole: whether ``table`` has all of them.
        where: how the rows lie in the files, to be read after their number.
    """

    table: pa.Table
    total: int
    whole: bool
    where: str


def text(files: Sequence[DataFile]) -> Excerpt:
    """Lines of text files: all, or about `ROWS`, from several places of plain files and from the start of packed ones.

    Raises:
        BadData: if the first file is empty, or a file cannot be read.
    """
    head = _bytes(files[0], HEAD_BYTES)
    if not head.strip():
        raise BadData("is empty", file=files[0], remedy="the file is incomplete, or it is the wrong one")
    wanted = min(BYTES, ROWS * len(head) // max(1, head.count(b"\n")))
    chosen = _spread(files)
    size = sum(_unpacked_bytes(file) for file in files)
    pieces = _all(files, wanted) if size <= wanted else None
    whole = pieces is not None
    if pieces is None:
        each = PIECES // len(chosen)
        pieces = [piece for file in chosen for piece in _pieces(file, each, wanted // len(chosen) // each)]
    first_line = head.split(b"\n", 1)[0] + b"\n"
    lines = [pieces[0], *(piece.removeprefix(first_line) for piece in pieces[1:])]  # a header stands in every file
    content = b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines if line)
    return Excerpt(files[0].path, files[0].member, content, whole, size)


def read_text(excerpt: Excerpt, layout: Delimited) -> Rows:
    """All columns of an excerpt as text.

    Raises:
        BadData: if a line does not fit the layout.
    """
    columns = [Column(name) for name in layout.header()]
    table = pa.Table.from_batches(layout.read(columns), pa.schema([(column.name, pa.string()) for column in columns]))
    total = len(table) if excerpt.whole else round(len(table) * excerpt.size / len(excerpt.content))
    where = "from the start of the file" if _is_packed(excerpt) else "from several places of the file"
    return Rows(table, total, excerpt.whole, where)


def read_parquet(files: Sequence[DataFile]) -> Rows:
    """All columns of the rows at the start of some row groups, at most about `ROWS`.

    Raises:
        BadData: if a file cannot be read, or has two columns of the same name.
    """
    total, taken = 0, []
    groups = [(file, group) for file in files for group in range(_row_groups(file))]
    for file in files:
        total += pq.read_metadata(file.path).num_rows
    chosen = groups if total <= ROWS else _spread(groups)
    for file, group in chosen:
        with parquet.readable(file), pq.ParquetFile(file.path) as source:
            wanted = ROWS if total <= ROWS else ROWS // len(chosen)
            batches = source.iter_batches(min(wanted, 1 << 16), row_groups=[group])
            taken.append(pa.Table.from_batches(_first(batches, wanted), source.schema_arrow))
    table = pa.concat_tables(taken)
    return Rows(table, total, len(table) == total, "from several row groups")


def _row_groups(file: DataFile) -> int:
    with parquet.readable(file), pq.ParquetFile(file.path) as source:
        check_distinct(source.schema_arrow.names, file)
        return source.num_row_groups


def _first(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch.slice(0, rows)
        rows -= len(batch)
        if rows <= 0:
            return


def _spread(items: Sequence[Item]) -> list[Item]:
    """At most PIECES items, at equal distances, the first one included."""
    count = min(PIECES, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _is_packed(file: DataFile) -> bool:
    if file.member is not None:
        return True
    with file.path.open("rb") as stream:
        return stream.read(len(GZIP_MARK)) == GZIP_MARK


def _all(files: Sequence[DataFile], most: int) -> list[bytes] | None:
    """The unpacked text of each file; None if they have more than ``most`` bytes, which an estimate can miss."""
    pieces: list[bytes] = []
    for file in files:
        pieces.append(_bytes(file, most + 1))
        most -= len(pieces[-1])
        if most < 0:
            return None
    return pieces


def _bytes(file: DataFile, count: int) -> bytes:
    """The first ``count`` bytes of the unpacked text."""
    try:
        with file.open() as stream:
            return stream.read(count)
    except DAMAGE as error:
        raise BadData(f"cannot be read ({error})", file=file, remedy="download or copy it again") from error


def _unpacked_bytes(file: DataFile) -> int:
    """The size of the text; for a gzipped file, as if it packed as well everywhere as at its start."""
    packed = file.path.stat().st_size
    if file.member is not None:
        with zipfile.ZipFile(file.path) as archive:
            return archive.getinfo(file.member).file_size
    if not _is_packed(file):
        return packed
    head = _bytes(file, HEAD_BYTES)
    return len(head) if len(head) < HEAD_BYTES else round(packed * len(head) / len(zlib.compress(head)))


def _pieces(file: DataFile, count: int, length: int) -> list[bytes]:
    """Whole lines from ``count`` places of a plain file, or from the start of a packed one."""
    if _is_packed(file):
        return [_whole_lines(_bytes(file, length * count), file)]
    size, pieces = file.path.stat().st_size, []
    with file.path.open("rb") as stream:
        for place in range(count):
            start = place * size // count
            stream.seek(max(0, start - 1))
            if start:
                rest = stream.readline(LONGEST_LINE + 2)  # of a line that began before the piece
                if len(rest) > LONGEST_LINE + 1:
                    raise _too_long(file)
            pieces.append(_whole_lines(stream.read(length), file))
    return pieces


def _whole_lines(content: bytes, file: DataFile) -> bytes:
    end = content.rfind(b"\n") + 1
    if len(content) - end > LONGEST_LINE:
        raise _too_long(file)
    return content[:end]


def _too_long(file: DataFile) -> BadData:
    return BadData(
        f"has a line of more than {LONGEST_LINE:,} bytes",
        file=file,
        remedy="add the missing line end, shorten the value, or give a text table",
    )
