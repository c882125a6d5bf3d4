"""Your own table: CSV, TSV or Parquet. The options name its columns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator

from pipeline.sources import parquet
from pipeline.sources.bags import Bags
from pipeline.sources.delimited import CORRECT, Column, Delimited, extends_ascii
from pipeline.sources.files import DataFile, table_files
from pipeline.sources.labels import BinaryLabels
from pipeline.sources.plain import DATES, plain
from pipeline.sources.source import BAG, CATEGORICAL, LABEL, NUMERIC, TIME, BadColumn, BadData, Source
from pipeline.sources.times import Part, Times
from pipeline.workflow.validation import repeated

ENDINGS = (".csv", ".tsv", ".txt", ".parquet", ".gz", ".zip")


def _one_character(text: str) -> str:
    if len(text) != 1:
        raise ValueError(f"must be one character, got {text!r}")
    return text


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("must be at least one character, got ''")
    return text


def _known_encoding(name: str) -> str:
    if not extends_ascii(name):
        raise ValueError(
            f"must be an encoding that Python knows and that extends ASCII (utf-8, latin-1, cp1252), got {name!r}"
        )
    return name


def read(
    path: Path,
    *,
    label: str,
    label_type: Literal["binary", "number"] = "binary",
    positive: str | int | float | bool | None = None,
    categorical: Sequence[str] = (),
    numeric: Sequence[str] = (),
    bag: Sequence[str] = (),
    dates: Mapping[str, Sequence[Part]] | None = None,
    time: str | None = None,
    separator: Annotated[str, AfterValidator(_not_empty)] = "|",
    delimiter: Annotated[str, AfterValidator(_one_character)] | None = None,
    names: Sequence[str] | None = None,
    missing: Sequence[str] = ("",),
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8",
) -> Source:
    """A text file with a header line (unless ``names`` is set), or a Parquet file.

    Spaces around the values of text files, and around the values within a bag of text, are dropped. The notes of the
    `Source` say what became of labels that are not written 0 and 1, and what was dropped.

    Args:
        path: the file, also as .gz or alone in a .zip; or a folder of part files with the same columns, which are read
            in the order of their names.
        label: column of the label.
        label_type: "binary" for labels of 0 and 1, false and true, or no and yes, in any case; "number" for finite
            numbers, which are used unchanged.
        positive: the value in the column of a binary label that means 1, in any spelling (1 and 1.0, Yes and yes);
            every other value then means 0.
        categorical, numeric, bag: columns of the fields, by kind. Columns that are not named are not read.
        dates: parts to take from columns of dates and times (see ``time``; whole numbers are Unix seconds). Each part
            is a categorical field ``<column>_<part>``; see `Times.part`.
        time: column that orders the rows, for ``split: {by: time}``: whole numbers, ISO 8601 texts, or a Parquet type
            of dates or times.
        separator: text between the values of a bag that is stored as text.
        delimiter: of a text file, between columns; by default a tab if the file's name has ".tsv", else a comma.
        names: of all columns of a text file without a header line.
        missing: texts that mean a missing value in a text file.
        encoding: of a text file.

    Raises:
        ValueError: if the options contradict each other, or, as `BadData`, if the file does not fit them.
        NotFound: if there is no file.
    """
    if label_type == "number" and positive is not None:
        raise ValueError(
            f"dataset.options: positive must be null if label_type is number, got {positive!r}; remove one of them"
        )
    fields = _fields(label, time, {CATEGORICAL: categorical, NUMERIC: numeric, BAG: bag}, dates or {})
    labels = BinaryLabels(label, positive) if label_type == "binary" else None
    columns = _Columns(label, labels, time, fields, dates or {}, separator, missing)
    text = functools.partial(_text, names=names, delimiter=delimiter, missing=missing, encoding=encoding)
    return _source(path, columns, text)


def _source(path: Path, columns: _Columns, text: Callable[[DataFile], Delimited]) -> Source:
    """The file or the part files at a path; ``text`` opens one of text."""
    files = table_files(path, ENDINGS)
    one_by_one = [_ParquetTable(file) if parquet.is_parquet(file) else _TextTable(text(file)) for file in files]
    tables = _alike(one_by_one, columns)
    origin = str(files[0] if len(files) == 1 else path)
    notes = [] if len(files) == 1 else [f"read {len(files):,} files, from {files[0]} to {files[-1]}"]
    return Source(columns.all_fields, _batches(tables, columns, origin, notes), origin, notes=notes)


def _text(
    file: DataFile, names: Sequence[str] | None, delimiter: str | None, missing: Sequence[str], encoding: str
) -> Delimited:
    delimiter = delimiter or ("\t" if ".tsv" in str(file) else ",")
    return Delimited(
        file,
        names,
        delimiter,
        quoted=True,
        strip=True,
        encoding=encoding,
        missing=["", *missing],
        hint=f"correct or remove the line, put values that contain {delimiter!r} in double quotes, or set the option "
        "'delimiter' if it is another",
    )


def _fields(
    label: str, time: str | None, by_kind: Mapping[str, Sequence[str]], dates: Mapping[str, Sequence[Part]]
) -> dict[str, str]:
    """Kind of every field that is a column of the file."""
    fields = [name for group in by_kind.values() for name in group]
    own_times = [time] if time and time not in dates else []  # the column of the time may also be one of dates
    named = [label, *own_times, *fields, *dates]
    twice = repeated(named)
    if twice:
        raise ValueError(
            f"dataset.options: no column may be named twice, got {twice}; each is the label, the time or one field"
        )
    for column, parts in dates.items():
        if not parts or len(set(parts)) < len(parts):
            raise ValueError(
                f"dataset.options: dates.{column} must name at least one part, and none twice, got {list(parts)}"
            )
        taken = [name for name in _derived(column, parts) if name in named]
        if taken:
            raise ValueError(
                f"dataset.options: dates.{column} makes a field {taken[0]!r}, but the file has a column of this name; "
                "rename the column"
            )
    return {name: kind for kind, group in by_kind.items() for name in group}


def _derived(column: str, parts: Sequence[Part]) -> dict[str, Part]:
    """The part that each field of a column of dates holds."""
    return {f"{column}_{part}": part for part in parts}


class _Columns:
    """The meaning of a table's columns; see `read`. It reads batches in their order, and counts what it changes."""

    def __init__(
        self,
        label: str,
        labels: BinaryLabels | None,
        time: str | None,
        fields: dict[str, str],
        dates: Mapping[str, Sequence[Part]],
        separator: str,
        missing: Sequence[str],
    ) -> None:
        self.label, self.labels, self.time, self.fields = label, labels, time, fields
        self.dates = {column: _derived(column, parts) for column, parts in dates.items()}
        # What each column of the file is for: LABEL, TIME, DATES or the kind of a field.
        self.roles = {label: LABEL, **dict.fromkeys(dates, DATES), **({time: TIME} if time else {}), **fields}
        self.times = {name: Times(name) for name, role in self.roles.items() if role in (TIME, DATES)}
        self.bags = {name: Bags(name, separator, missing) for name, kind in fields.items() if kind == BAG}

    @property
    def all_fields(self) -> dict[str, str]:
        """Kind of every field, those of ``dates`` last."""
        return self.fields | {name: CATEGORICAL for derived in self.dates.values() for name in derived}

    def of_text(self) -> list[Column]:
        """The columns that a text file must have."""
        number = {NUMERIC} if self.labels else {NUMERIC, LABEL}
        return [
            Column(name, pa.float64() if role in number else pa.string(), required=role in (LABEL, TIME))
            for name, role in self.roles.items()
        ]

    def named(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns with the names and types of a `Source`.

        Raises:
            BadColumn: if a value does not suit its column.
        """
        label = batch[self.label]
        columns = {LABEL: self.labels(label) if self.labels else self._numbers(label)}
        times = {name: read(batch[name]) for name, read in self.times.items()}
        if self.time:
            columns[TIME] = self.times[self.time].order(times[self.time])
        for name in self.fields:
            columns[name] = self.bags[name](batch[name]) if name in self.bags else batch[name]
        for column, derived in self.dates.items():
            for name, part in derived.items():
                columns[name] = self.times[column].part(times[column], part)
        return pa.RecordBatch.from_pydict(columns)

    def _numbers(self, column: pa.Array) -> pa.Array:
        """Labels that are any finite number."""
        numbers = pa.nulls(len(column), pa.float64())
        if not pa.types.is_string(column.type):
            numbers = column.cast(pa.float64(), safe=False)  # large integers are rounded
        row = pc.index(pc.fill_null(pc.is_finite(numbers), False), False).as_py()
        if row >= 0:
            value = str(column[row].as_py())
            raise BadColumn(self.label, "must be a finite number", remedy=CORRECT, row=row, value=value)
        return numbers

    def notes(self) -> list[str]:
        """What was changed, as sentences."""
        notes = [self.labels.note()] if self.labels else []
        notes += [times.note() for times in self.times.values()]
        notes += [bags.note() for bags in self.bags.values()]
        return [note for note in notes if note]


@dataclass(frozen=True)
class _TextTable:
    """One text file."""

    text: Delimited

    @property
    def file(self) -> DataFile:
        return self.text.file

    def names(self) -> list[str]:
        return self.text.header()

    def batches(self, columns: _Columns) -> Iterator[pa.RecordBatch]:
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
class _ParquetTable:
    """One Parquet file; ``kinds`` are the types that its columns share with those of other part files."""

    file: DataFile
    kinds: Mapping[str, pa.DataType] = field(default_factory=dict)

    def names(self) -> list[str]:
        return list(parquet.schema(self.file).names)

    def batches(self, columns: _Columns) -> Iterator[pa.RecordBatch]:
        for batch in parquet.read(self.file, list(columns.roles)):
            cast = {name: plain(name, batch[name], role) for name, role in columns.roles.items()}
            for name, kind in self.kinds.items():
                try:
                    cast[name] = cast[name].cast(kind, safe=pa.types.is_integer(kind))
                except pa.ArrowInvalid as error:
                    problem, remedy = f"must fit {kind}, the type of all part files", "write them with the same types"
                    raise BadColumn(name, problem, remedy=f"{remedy} ({error})") from error
            yield pa.RecordBatch.from_pydict(cast)

    def plain_kinds(self, columns: _Columns) -> dict[str, pa.DataType]:
        """Types of the columns as `batches` yields them; null for a column that holds nothing."""
        kinds = {}
        for stored in parquet.schema(self.file):
            if stored.name in columns.roles:
                null = pa.types.is_null(stored.type)
                empty = pa.array([], stored.type)
                kinds[stored.name] = stored.type if null else plain(stored.name, empty, columns.roles[stored.name]).type
        return kinds

    def bad(self, error: BadColumn, first: int) -> BadData:
        """The error with its row, from 1, if the rows of the batch start at number ``first`` of the file."""
        row = "" if error.row is None else f", row {first + error.row + 1:,}:"
        return BadData(
            f"column {error.column!r}{row} {error.problem}", file=self.file, value=error.value, remedy=error.remedy
        )


_Table = _TextTable | _ParquetTable


def _alike(tables: Sequence[_Table], columns: _Columns) -> Sequence[_Table]:
    """The part files of one table. Columns of Parquet get a type that suits all files.

    Raises:
        BadData: for the first file that is of another form, or has other columns, than the first one.
    """
    first = tables[0]
    kinds: dict[str, pa.DataType] = {}
    for table in tables if len(tables) > 1 else []:
        problem, value = "", table.names()
        if type(table) is not type(first):
            problem = f"must be {'Parquet' if isinstance(first, _ParquetTable) else 'text'}"
        elif set(table.names()) != set(first.names()):
            problem = f"must have the columns {first.names()}"
        elif isinstance(table, _ParquetTable):
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
                remedy="remove it, or set dataset.path in params.yaml to one file",
            )
    kinds = {name: kind for name, kind in kinds.items() if not pa.types.is_null(kind)}
    return [replace(table, kinds=kinds) if isinstance(table, _ParquetTable) else table for table in tables]


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _batches(tables: Sequence[_Table], columns: _Columns, origin: str, notes: list[str]) -> Iterator[pa.RecordBatch]:
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
