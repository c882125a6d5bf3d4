"""Reads Parquet files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.delimited import check_distinct
from pipeline.sources.files import DAMAGE, DataFile
from pipeline.sources.source import BadData

MARK = b"PAR1"  # the first bytes of the file


def is_parquet(file: DataFile) -> bool:
    """Whether the file is Parquet.

    Raises:
        BadData: if it is Parquet in a zip.
    """
    try:
        with file.open() as stream:
            if stream.read(len(MARK)) != MARK:
                return False
    except DAMAGE:  # of a .gz or a .zip; reading it as text names the place
        return False
    if file.member is not None:
        raise BadData(
            "must not be Parquet in a zip", file=file, remedy="unzip it; Parquet files are compressed already"
        )
    return True


def schema(file: DataFile) -> pa.Schema:
    """The names and types of the columns.

    Raises:
        BadData: if the file is damaged, or if two columns have the same name.
    """
    with readable(file), pq.ParquetFile(file.path) as parquet:
        columns: pa.Schema = parquet.schema_arrow
    check_distinct(columns.names, file)
    return columns


def read(file: DataFile, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The named columns, batch by batch, with the types that the file has.

    Raises:
        BadData: if a column is missing or cannot be read.
    """
    check_columns(schema(file).names, names, file)
    with readable(file), pq.ParquetFile(file.path) as parquet:
        for group in range(parquet.num_row_groups):  # one by one: the reader keeps the groups of a call in memory
            batches = parquet.iter_batches(row_groups=[group], columns=list(names))
            rows, expected = 0, parquet.metadata.row_group(group).num_rows
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError):
                    _name_the_column(file, parquet, group, names)
                    raise
                if batch is None:
                    break
                rows += len(batch)
                yield batch
            if rows != expected:  # the reader stops without an error at a page that claims to be the last one
                raise OSError(f"row group {group} has {rows:,} rows instead of {expected:,}")


def _name_the_column(file: DataFile, parquet: pq.ParquetFile, group: int, names: Sequence[str]) -> None:
    """Raise BadData for the first column of a row group that cannot be read, if there is one."""
    for name in names:
        with readable(file, f"column {name!r} "):
            parquet.read_row_group(group, columns=[name])


def check_columns(there: Sequence[str], names: Sequence[str], place: object) -> None:
    """Raise BadData unless all the names are there."""
    absent = [name for name in names if name not in there]
    if absent:
        raise BadData(f"no column {', '.join(map(repr, absent))}", file=place, remedy=f"there are {list(there)}")


@contextlib.contextmanager
def readable(file: DataFile, what: str = "") -> Iterator[None]:
    """Turns an error of the reader within the block into `BadData` that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        raise BadData(f"{what}cannot be read ({text})", file=file, remedy="write or copy the file again") from error
