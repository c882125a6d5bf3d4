"""The files of a table, text or Parquet, read as one; or rows in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.sources import parquet
from pipeline.sources.columns import Columns
from pipeline.sources.delimited import Delimited
from pipeline.sources.files import DataFile
from pipeline.sources.plain import plain
from pipeline.sources.source import BadColumn, BadData


@dataclass(frozen=True)
class TextTable:
    """One text file."""

    text: Delimited

    @property
    def file(self) -> DataFile:
        return self.text.file

    def names(self) -> list[str]:
        return self.text.header()

    def batches(self, columns: Columns) -> Iterator[pa.RecordBatch]:
        return self.text.read(columns.of_text())

    def bad(self, error: BadColumn, first: int) -> BadData:
        """The error with its line, if the rows of the batch start at number ``first`` of the file."""
        line = None if error.row is None else self.text.line_of(first + error.row)
        return BadData(
            f"column {error.column!r} {error.problem}",
            file=self.file,
            line=line,
            value=error.value,
            remedy=error.remedy,
        )


@dataclass(frozen=True)
class ParquetTable:
    """One Parquet file; ``kinds`` are the types that its columns share with those of other part files."""

    file: DataFile
    kinds: Mapping[str, pa.DataType] = field(default_factory=dict)

    def names(self) -> list[str]:
        return list(parquet.schema(self.file).names)

    def batches(self, columns: Columns) -> Iterator[pa.RecordBatch]:
        for batch in parquet.read(self.file, list(columns.roles)):
            cast = columns.plain(batch)
            for name, kind in self.kinds.items():
                try:
                    cast[name] = cast[name].cast(kind, safe=pa.types.is_integer(kind))
                except pa.ArrowInvalid as error:
                    problem, remedy = f"must fit {kind}, the type of all part files", "write them with the same types"
                    raise BadColumn(name, problem, remedy=f"{remedy} ({error})") from error
            yield pa.RecordBatch.from_pydict(cast)

    def plain_kinds(self, columns: Columns) -> dict[str, pa.DataType]:
        """Types of the columns as `batches` yields them; null for a column that holds nothing."""
        kinds = {}
        for stored in parquet.schema(self.file):
            if stored.name in columns.roles:
                null = pa.types.is_null(stored.type)
                empty = pa.array([], stored.type)
                kinds[stored.name] = stored.type if null else plain(stored.name, empty, columns.roles[stored.name]).type
        return kinds

    def bad(self, error: BadColumn, first: int) -> BadData:
        """The error with its row, if the rows of the batch start at number ``first`` of the file."""
        return _bad_row(error, first, self.file)


@dataclass(frozen=True)
class Rows:
    """Rows in memory; ``file`` says what they are in messages."""

    rows: pa.RecordBatch
    file: str

    def batches(self, columns: Columns) -> Iterator[pa.RecordBatch]:
        parquet.check_columns(self.rows.schema.names, list(columns.roles), self.file)
        yield pa.RecordBatch.from_pydict(columns.plain(self.rows))

    def bad(self, error: BadColumn, first: int) -> BadData:
        """The error with its row, if the rows of the batch start at number ``first``."""
        return _bad_row(error, first, self.file)


def _bad_row(error: BadColumn, first: int, place: object) -> BadData:
    """The error with its row, from 1, if the rows of its batch start at number ``first``."""
    row = "" if error.row is None else f", row {first + error.row + 1:,}:"
    return BadData(f"column {error.column!r}{row} {error.problem}", file=place, value=error.value, remedy=error.remedy)


Table = TextTable | ParquetTable


def alike(tables: Sequence[Table], columns: Columns) -> Sequence[Table]:
    """The part files of one table. Columns of Parquet get a type that suits all files.

    Raises:
        BadData: for the first file that is of another form, or has other columns, than the first one.
    """
    first = tables[0]
    kinds: dict[str, pa.DataType] = {}
    for table in tables if len(tables) > 1 else []:
        problem, value = "", table.names()
        if type(table) is not type(first):
            problem = f"must be {'Parquet' if isinstance(first, ParquetTable) else 'text'}"
        elif set(table.names()) != set(first.names()):
            problem = f"must have the columns {first.names()}"
        elif isinstance(table, ParquetTable):
            for name, kind in table.plain_kinds(columns).items():
                try:
                    kinds[name] = _common(kinds.get(name, pa.null()), kind)
                except pa.ArrowTypeError:
                    problem, value = f"column {name!r} must hold {kinds[name]}", [str(kind)]
                    break
        if problem:
            raise BadData(
                f"{problem}, like {first.file}, because the files of a folder are read as one table",
                file=table.file,
                value=value,
                remedy="remove it, or name one file",
            )
    kinds = {name: kind for name, kind in kinds.items() if not pa.types.is_null(kind)}
    return [replace(table, kinds=kinds) if isinstance(table, ParquetTable) else table for table in tables]


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def batches(
    tables: Sequence[Table | Rows], columns: Columns, origin: str, notes: list[str]
) -> Iterator[pa.RecordBatch]:
    """The batches of all part files in turn; then ``notes`` are complete."""
    for table in tables:
        first = 0
        try:
            for batch in table.batches(columns):
                yield columns.named(batch)
                first += len(batch)
        except BadColumn as error:
            raise table.bad(error, first) from error
    try:
        if columns.labels:
            columns.labels.check()
    except BadColumn as error:
        raise BadData(str(error), file=origin, value=error.value, remedy=error.remedy) from error
    notes += columns.notes()
