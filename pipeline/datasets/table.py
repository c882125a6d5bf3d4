"""Your own table: CSV, TSV or Parquet. The options name its columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator

from pipeline.sources import parquet
from pipeline.sources.delimited import CORRECT, Column, Delimited, binary_label, extends_ascii
from pipeline.sources.files import DataFile, only_file
from pipeline.sources.source import BAG, CATEGORICAL, LABEL, NUMERIC, TIME, BadData, Source

ENDINGS = (".csv", ".tsv", ".txt", ".parquet", ".gz", ".zip")
SET_POSITIVE = (
    "correct it, name the value that means 1 with the option 'positive' (every other value then means 0), or set the "
    "option 'label_type' to number"
)


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
    positive: str | int | None = None,
    categorical: Sequence[str] = (),
    numeric: Sequence[str] = (),
    bag: Sequence[str] = (),
    time: str | None = None,
    separator: Annotated[str, AfterValidator(_not_empty)] = "|",
    delimiter: Annotated[str, AfterValidator(_one_character)] | None = None,
    names: Sequence[str] | None = None,
    missing: Sequence[str] = ("",),
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8",
) -> Source:
    """A text file with a header line (unless ``names`` is set), or a Parquet file.

    Spaces around the values of text files are dropped.

    Args:
        path: the file, also as .gz or alone in a .zip; or a folder with no other table in it.
        label: column of the label.
        label_type: "binary" for labels of 0 and 1; "number" for finite numbers, which are used unchanged.
        positive: the value in the column of a binary label that means 1; every other value then means 0.
        categorical, numeric, bag: columns of the fields, by kind. Columns that are not named are not read.
        time: column of whole numbers (e.g. Unix seconds) that orders the rows, for ``split: {by: time}``.
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
    fields = _fields(label, time, {CATEGORICAL: categorical, NUMERIC: numeric, BAG: bag})
    columns = _Columns(label, label_type, positive, time, fields, separator)
    file = only_file(path, ENDINGS)
    if parquet.is_parquet(file):
        return Source(columns.fields, _parquet(file, columns), str(file))
    text = _text(file, names, delimiter, missing, encoding)
    return Source(columns.fields, map(columns.named, text.read(columns.of_text())), str(file))


def unlabelled(
    rows: Path | pa.RecordBatch,
    *,
    keep: Sequence[str] = (),
    label: str | None = None,
    categorical: Sequence[str] = (),
    numeric: Sequence[str] = (),
    bag: Sequence[str] = (),
    separator: str = "|",
    delimiter: str | None = None,
    names: Sequence[str] | None = None,
    missing: Sequence[str] = ("",),
    encoding: str = "utf-8",
) -> Source:
    """New rows, read as `read` reads those with labels.

    Args:
        rows: the file, as for `read`; or the rows themselves, with the column types of a Parquet file.
        keep: further columns, which are passed on.
        label: column that a text file without a header line may leave out; it is not read.
        names: of all columns of a text file without a header line. If its first line names the fields, it is a header.
        categorical, numeric, bag, separator, delimiter, missing, encoding: see `read`.

    Raises:
        ValueError: as `BadData`, if the rows do not fit.
        NotFound: if there is no file.
    """
    fields = _fields(None, None, {CATEGORICAL: categorical, NUMERIC: numeric, BAG: bag})
    others = tuple(name for name in keep if name not in fields)
    columns = _Columns(None, "binary", None, None, fields, separator, others)
    if isinstance(rows, pa.RecordBatch):
        parquet.check_columns(rows.schema.names, columns.names, "the rows")
        return Source(fields, [columns.typed(rows, "the rows")], "the rows")
    file = only_file(rows, ENDINGS)
    if parquet.is_parquet(file):
        return Source(fields, _parquet(file, columns), str(file))
    text = _text(file, None, delimiter, missing, encoding)
    if names is not None:
        first = text.first_values()
        if not set(fields) <= set(first):
            without = [name for name in names if name != label]
            text = replace(text, names=without if len(first) == len(without) else names)
    return Source(fields, map(columns.named, text.read(columns.of_text())), str(file))


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


def _fields(label: str | None, time: str | None, by_kind: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Kind of every field."""
    named = [name for name in (label, time) if name] + [name for group in by_kind.values() for name in group]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ValueError(
            f"dataset.options: no column may be named twice, got {twice}; each is the label, the time or one field"
        )
    return {name: kind for kind, group in by_kind.items() for name in group}


@dataclass(frozen=True)
class _Columns:
    """The meaning of a table's columns; see `read` and `unlabelled`."""

    label: str | None
    label_type: str
    positive: str | int | None
    time: str | None
    fields: dict[str, str]
    separator: str
    keep: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [*(name for name in (self.label, self.time) if name), *self.fields, *self.keep]

    def of_text(self) -> list[Column]:
        """The columns that a text file must have."""
        columns = []
        if self.label is None:
            pass
        elif self.label_type == "number":
            columns.append(Column(self.label, pa.float64(), required=True))
        elif self.positive is None:
            columns.append(binary_label(self.label, SET_POSITIVE))
        else:
            columns.append(Column(self.label, required=True))
        if self.time:
            columns.append(Column(self.time, pa.int64(), required=True))
        types = {NUMERIC: pa.float64()}
        columns += [Column(name, types.get(kind, pa.string())) for name, kind in self.fields.items()]
        return columns + [Column(name) for name in self.keep]

    def named(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns with the names and types of a `Source`."""
        columns = {name: batch[name] for name in self.keep}
        if self.label:
            columns[LABEL] = self._labels(batch[self.label])
        if self.time:
            columns[TIME] = batch[self.time].cast(pa.int64())
        for name, kind in self.fields.items():
            column = batch[name]
            if kind == BAG and pa.types.is_string(column.type):
                column = pc.split_pattern(column, self.separator)
            columns[name] = column.cast(pa.list_(pa.string())) if kind == BAG else column
        return pa.RecordBatch.from_pydict(columns)

    def typed(self, batch: pa.RecordBatch, place: object, first_row: int = 0) -> pa.RecordBatch:
        """The columns of a Parquet file, or of rows in memory, with the names and types of a `Source`.

        Args:
            batch: with at least the columns of `names`.
            place: of the rows, and the number of the first one, from 0, for error messages.
        """
        kept = {name: batch[name] for name in self.keep}
        read = [name for name in self.names if name not in kept]
        plain = {name: _plain(place, name, batch[name], self.fields.get(name)) for name in read}
        if self.label:
            self.check_labels(plain[self.label], first_row, place)
        return self.named(pa.RecordBatch.from_pydict(plain | kept))

    def _labels(self, column: pa.Array) -> pa.Array:
        if self.label_type == "number":
            return column.cast(pa.float64(), safe=False)  # large integers are rounded
        if self.positive is not None:
            column = pc.equal(column, self._positive(column.type))
        return column.cast(pa.uint8())

    def _positive(self, kind: pa.DataType) -> pa.Scalar:
        return pa.scalar(str(self.positive)).cast(kind)

    def check_labels(self, column: pa.Array, first_row: int, file: object) -> None:
        """Raise BadData unless the labels of a Parquet file fit the options. Messages count rows from 1."""
        is_text = pa.types.is_string(column.type)
        good, problem, remedy = pc.is_valid(column), "must not be missing", CORRECT
        if self.label_type == "number":
            good = pa.array([False] * len(column)) if is_text else pc.is_finite(column)
            problem = "must be a finite number"
        elif self.positive is None:
            good = pa.array([False] * len(column)) if is_text else pc.is_in(column, pa.array([0, 1], column.type))
            problem, remedy = "must be 0 or 1", SET_POSITIVE
        else:
            try:
                self._positive(column.type)
            except pa.ArrowInvalid as error:
                raise BadData(
                    f"the option 'positive' must be a value of column {self.label!r}, which holds {column.type}",
                    file=file,
                    value=self.positive,
                    remedy="correct it",
                ) from error
        good = pc.fill_null(good, False)
        if not pc.all(good).as_py():
            row = good.to_pylist().index(False)
            raise BadData(
                f"column {self.label!r}, row {first_row + row + 1:,}: {problem}",
                file=file,
                value=str(column[row].as_py()),
                remedy=remedy,
            )


def _parquet(file: DataFile, columns: _Columns) -> Iterator[pa.RecordBatch]:
    row = 0
    with parquet.readable(file):
        for batch in parquet.read(file, columns.names):
            yield columns.typed(batch, file, row)
            row += len(batch)


def _plain(file: object, name: str, column: pa.Array, kind: str | None) -> pa.Array:
    """A Parquet column, cast to a type that `Source` allows.

    Raises:
        BadData: if its type does not suit the field's kind.
    """
    if pa.types.is_null(column.type):
        column = column.cast(pa.float64() if kind == NUMERIC else pa.string())
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    stored = column.type
    if pa.types.is_large_string(stored) or pa.types.is_string_view(stored):
        column = column.cast(pa.string())
    elif pa.types.is_boolean(stored):
        column = column.cast(pa.uint8())
    elif pa.types.is_temporal(stored):
        column = column.cast(pa.int64())
    elif pa.types.is_decimal(stored):
        column = column.cast(pa.float64())
    is_text, is_whole = pa.types.is_string(column.type), pa.types.is_integer(column.type)
    is_number = is_whole or pa.types.is_floating(column.type)
    is_list = pa.types.is_list(stored) or pa.types.is_large_list(stored)
    if kind == CATEGORICAL and pa.types.is_floating(column.type):  # pandas stores integers with gaps as floats
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise BadData(
                f"categorical column {name!r} must not hold fractions ({error})",
                file=file,
                remedy="list it under 'numeric', or store it as text",
            ) from error
    words, suits = {
        CATEGORICAL: ("text or whole numbers", is_text or is_whole),
        NUMERIC: ("numbers", is_number),
        BAG: ("text or lists", is_text or is_list),
        None: ("numbers or text", is_number or is_text),
    }[kind]
    if not suits:
        raise BadData(
            f"{kind or 'label or time'} column {name!r} must hold {words}, got {stored}",
            file=file,
            remedy="list it under another kind, or store it in another type",
        )
    return column
