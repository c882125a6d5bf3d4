"""Your own table: CSV, TSV or Parquet. The options name its columns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import AfterValidator

from pipeline.sources import parquet
from pipeline.sources.columns import Columns, derived
from pipeline.sources.delimited import Delimited, extends_ascii
from pipeline.sources.events import Events
from pipeline.sources.files import DataFile, table_files
from pipeline.sources.labels import BinaryLabels
from pipeline.sources.source import BAG, CATEGORICAL, NUMERIC, Source
from pipeline.sources.tables import ParquetTable, Rows, TextTable, alike, batches
from pipeline.sources.times import Part
from pipeline.workflow.validation import repeated

HISTORY = 20  # interactions before a query, if there are times
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
    label: str | None = None,
    label_type: Literal["binary", "number"] = "binary",
    positive: str | int | float | bool | None = None,
    interactions: Events | None = None,
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
        label: column of the label; None for interactions.
        label_type: "binary" for labels of 0 and 1, false and true, or no and yes, in any case; "number" for finite
            numbers, which are used unchanged.
        positive: the value in the column of a binary label that means 1, in any spelling (1 and 1.0, Yes and yes);
            every other value then means 0.
        interactions: the columns that make the rows interactions of users and items, without a label.
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
    _check_label(label, label_type, positive, interactions)
    own = interactions.columns if interactions else []
    fields = _fields(label, time, {CATEGORICAL: [*own, *categorical], NUMERIC: numeric, BAG: bag}, dates or {})
    labels = BinaryLabels(label, positive) if label is not None and label_type == "binary" else None
    columns = Columns(label, labels, time, fields, dates or {}, separator, missing)
    text = functools.partial(_text, names=names, delimiter=delimiter, missing=missing, encoding=encoding)
    source = _source(path, columns, text)
    if interactions is None:
        return source
    return interactions.of(replace(source, facts=columns.facts), HISTORY if time else 0)


def _check_label(label: str | None, label_type: str, positive: object, interactions: Events | None) -> None:
    """Raise ValueError if the options of the label contradict each other, or there are interactions, too."""
    if label is None and interactions is None:
        raise ValueError("dataset.options: 'label' is missing; name its column, or set interactions")
    if label is not None and interactions is not None:
        raise ValueError(f"dataset.options: label must be null with interactions, got {label!r}; remove one of them")
    if label_type == "number" and positive is not None:
        raise ValueError(
            f"dataset.options: positive must be null if label_type is number, got {positive!r}; remove one of them"
        )
    if label is None and positive is not None:
        raise ValueError(f"dataset.options: positive must be null without a label, got {positive!r}; remove it")


def unlabelled(
    rows: Path | pa.RecordBatch,
    *,
    keep: Sequence[str] = (),
    label: str | None = None,
    categorical: Sequence[str] = (),
    numeric: Sequence[str] = (),
    bag: Sequence[str] = (),
    dates: Mapping[str, Sequence[Part]] | None = None,
    separator: str = "|",
    delimiter: str | None = None,
    names: Sequence[str] | None = None,
    missing: Sequence[str] = ("",),
    encoding: str = "utf-8",
) -> Source:
    """New rows, read as `read` reads those with labels.

    Args:
        rows: the file or the folder, as for `read`; or the rows themselves, with the column types of a Parquet file.
        keep: further columns, which are passed on.
        label: column that a text file without a header line may leave out; it is not read.
        names: of all columns of a text file without a header line. If its first line names the fields, it is a header.
        categorical, numeric, bag, dates, separator, delimiter, missing, encoding: see `read`.

    Raises:
        ValueError: as `BadData`, if the rows do not fit.
        NotFound: if there is no file.
    """
    fields = _fields(None, None, {CATEGORICAL: categorical, NUMERIC: numeric, BAG: bag}, dates or {})
    columns = Columns(None, None, None, fields, dates or {}, separator, missing, keep)

    def text(file: DataFile) -> Delimited:
        table = _text(file, None, delimiter, missing, encoding)
        if names is None:
            return table
        first = table.first_values()
        if {*fields, *(dates or {})} <= set(first):
            return table
        others = [name for name in names if name != label]
        return replace(table, names=others if len(first) == len(others) else names)

    if isinstance(rows, pa.RecordBatch):
        notes: list[str] = []
        place = "the rows"
        return Source(columns.all_fields, batches([Rows(rows, place)], columns, place, notes), place, notes=notes)
    return _source(rows, columns, text)


def _source(path: Path, columns: Columns, text: Callable[[DataFile], Delimited]) -> Source:
    """The file or the part files at a path; ``text`` opens one of text."""
    files = table_files(path, ENDINGS)
    one_by_one = [ParquetTable(file) if parquet.is_parquet(file) else TextTable(text(file)) for file in files]
    tables = alike(one_by_one, columns)
    origin = str(files[0] if len(files) == 1 else path)
    notes = [] if len(files) == 1 else [f"read {len(files):,} files, from {files[0]} to {files[-1]}"]
    return Source(columns.all_fields, batches(tables, columns, origin, notes), origin, notes=notes)


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
    label: str | None, time: str | None, by_kind: Mapping[str, Sequence[str]], dates: Mapping[str, Sequence[Part]]
) -> dict[str, str]:
    """Kind of every field that is a column of the file."""
    fields = [name for group in by_kind.values() for name in group]
    own_times = [time] if time and time not in dates else []  # the column of the time may also be one of dates
    named = [*([label] if label else []), *own_times, *fields, *dates]
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
        taken = [name for name in derived(column, parts) if name in named]
        if taken:
            raise ValueError(
                f"dataset.options: dates.{column} makes a field {taken[0]!r}, but the file has a column of this name; "
                "rename the column"
            )
    return {name: kind for kind, group in by_kind.items() for name in group}
