"""Reads a piece of a file by the data set's own reader, as if the piece were a whole file."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.raw import check_values, checked_schema
from pipeline.sources.source import BadData, NotFound, Source

OTHER = "choose a data set of one table, such as table or criteo"


class BadPiece(ValueError):
    """A message of a data set's reader about a piece, with the place that a user knows."""


@dataclass(frozen=True)
class Place:
    """Where a piece is from.

    Args:
        file: its name.
        byte: from which a worker reads the file; the first line that starts there is the worker's first.
        before: lines or rows that the worker has read before this piece.
    """

    file: str
    byte: int
    before: int

    def __str__(self) -> str:
        return f"{self.file} from byte {self.byte:,} on" if self.byte else self.file


@dataclass(frozen=True)
class Reader:
    """Reads pieces of files by the function ``read`` of a data set.

    It decides some things by the first row that it meets, such as how labels are spelled. So the first row of all
    stands in front of each piece, and is dropped again.

    Args:
        dataset: its name.
        options: of its ``read``.
        file: a name for the pieces; its ending tells what they are.
        first: the first row of all: a line; for Parquet, a table.
        header: the first line of each file of text; None if they have none.
    """

    dataset: str
    options: Mapping[str, Any]
    file: str
    first: bytes | pa.Table
    header: bytes | None = None

    @classmethod
    def of_text(cls, dataset: str, options: Mapping[str, Any], file: str, lines: Sequence[bytes], place: str) -> Reader:
        """A reader of text, after its first two lines that are not blank: one is a row, and the other may be a header.

        Raises:
            BadPiece: naming the place, if they cannot be read.
        """
        lines = [line.rstrip(b"\r") for line in lines]
        reader = cls(dataset, options, file, lines[0])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / file
            path.write_bytes(b"\n".join(lines))
            try:
                rows = len(next(iter(reader._source(path).batches), ()))
            except (BadData, NotFound) as error:
                raise BadPiece(str(error).replace(str(path), place)) from error
        if rows not in (1, 2) or len(lines) < 2:
            raise BadPiece(f"{place}: its first two lines are read as {rows} rows; {OTHER}, instead of {dataset}")
        return reader if rows == 2 else replace(reader, first=lines[1], header=lines[0])

    def rows(self, piece: pa.RecordBatch, place: Place) -> tuple[Source, pa.Table]:
        """The rows of a piece, and the source that they are from.

        Args:
            piece: a column of lines; for Parquet, rows.
            place: that it is from.

        Raises:
            BadPiece: if a row is wrong.
        """
        header = self.header is not None and place.byte == 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.file
            if isinstance(self.first, pa.Table):
                ahead, expected = 1, 1 + len(piece)
                pq.write_table(pa.concat_tables([self.first, pa.table(piece).cast(self.first.schema)]), path)
            else:
                lines = piece[0].to_pylist()
                if header and place.before == 0:
                    self._check_header(lines.pop(0), place)
                head = [self.first] if self.header is None else [self.header, self.first]
                ahead, expected = len(head), 1 + sum(1 for line in lines if line.rstrip(b"\r"))
                path.write_bytes(b"\n".join([*head, *lines]))
            try:
                source = self._source(path)
                table = self._exactly(source, expected, path).slice(1)
            except (BadData, NotFound) as error:
                shift = max(place.before, int(header)) - ahead
                raise BadPiece(_placed(str(error), path, place, shift)) from error
        try:
            check_values(replace(source, origin=str(place)), table, max(0, place.before - int(header)))
        except BadData as error:
            raise BadPiece(str(error)) from error
        return source, table

    def _check_header(self, line: bytes, place: Place) -> None:
        if line.rstrip(b"\r") != self.header:
            raise BadPiece(
                f"{place}, line 1: must be the header of the first file, {self.header!r}, got {line!r}; write all "
                "files with the same columns in the same order"
            )

    def _source(self, path: Path) -> Source:
        read = importlib.import_module(f"pipeline.datasets.{self.dataset}").read
        source: Source = read(path, **self.options)
        return source

    def _exactly(self, source: Source, expected: int, path: Path) -> pa.Table:
        """All rows of a source, of which there must be so many."""
        batches, rows = [], 0
        for batch in source.batches:
            batches.append(batch)
            rows += len(batch)
            if rows >= expected:  # what a reader says after its last row is about all rows, and this is a piece
                break
        if rows != expected:
            raise BadData(f"{expected:,} rows are read as {rows:,}", file=path, remedy=f"{OTHER}, or correct the file")
        table = pa.Table.from_batches(batches)
        return table.select(checked_schema(source, table.schema).names)


def _placed(text: str, path: Path, place: Place, shift: int) -> str:
    """A message about a file in which a piece was written, with the place it is from, and its first number shifted."""
    shifted = re.sub(
        r"(, line |, row )([\d,]+)",
        lambda found: f"{found[1]}{int(found[2].replace(',', '')) + shift:,}",
        text.replace(str(path), "\0", 1),
        count=1,
    )
    return shifted.replace("\0", str(place)).replace(str(path), str(place))
