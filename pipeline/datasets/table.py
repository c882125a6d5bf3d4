"""Any table of one's own: CSV, TSV or Parquet, with the columns named in the options."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.sources.delimited import ZERO_OR_ONE, Column, Delimited
from pipeline.sources.files import DataFile
from pipeline.sources.source import BAG, CATEGORICAL, LABEL, NUMERIC, TIME, BadData, NotFound, Source

ENDINGS = (".csv", ".tsv", ".txt", ".parquet", ".gz", ".zip")
NOT_BINARY = (
    "must be 0 or 1",
    "correct the line, or name the value that means 1 with the option 'positive' (every other value then means 0)",
)


def read(
    path: Path,
    *,
    label: str,
    categorical: Sequence[str] = (),
    numeric: Sequence[str] = (),
    bag: Sequence[str] = (),
    time: str | None = None,
    positive: str | int | None = None,
    separator: str = "|",
    delimiter: str | None = None,
    names: Sequence[str] | None = None,
    missing: Sequence[str] = ("",),
    encoding: str = "utf-8",
) -> Source:
    """A table with a header line (unless ``names``), or a Parquet file.

    Args:
        path: the file, also as .gz or alone in a .zip; or a folder with nothing else in it.
        label: column of the label: 0 and 1, or see ``positive``.
        categorical, numeric, bag: columns of the fields, by kind. Columns that are not named are not read.
        time: column of whole numbers (e.g. Unix seconds) that orders the rows, for ``split: {by: time}``.
        positive: value of the label column that means 1; every other then means 0.
        separator: what stands between the values of a bag.
        delimiter: what stands between columns; by default a tab if the file's name has ".tsv", else a comma.
        names: of all the columns, if the file has no header line.
        missing: texts that mean a missing value.
        encoding: of the text.

    For Parquet, which has types, ``delimiter``, ``names``, ``missing`` and ``encoding`` have no effect, and
    ``separator`` none on columns of lists. Spaces around values of text files are dropped.
    """
    fields = {
        name: kind
        for kind, group in ((CATEGORICAL, categorical), (NUMERIC, numeric), (BAG, bag))
        for name in _texts(kind, group)
    }
    named = [label, *([time] if time else []), *categorical, *numeric, *bag]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ValueError(f"dataset.options: columns named twice: {twice}; each is the label, the time or one field")
    file = _only_file(path)
    if _is_parquet(file):
        batches = _parquet(file, fields, label, time, positive, separator)
    else:
        if delimiter is None:
            delimiter = "\t" if ".tsv" in str(file) else ","
        if len(delimiter) != 1:
            raise ValueError(f"dataset.options: delimiter must be one character, however {delimiter=}")
        text = Delimited(
            file,
            None if names is None else _texts("names", names),
            delimiter,
            quoted=True,
            strip=True,
            encoding=encoding,
            missing=["", *_texts("missing", missing)],
            hint="correct or remove the line, or set the option 'delimiter' if it is not "
            f"{delimiter!r}; values with {delimiter!r} in them must stand in double quotes",
        )
        batches = _text(text, fields, label, time, positive, separator)
    return Source(fields, batches, str(file))


def _texts(option: str, given: Sequence[str]) -> list[str]:
    if not isinstance(given, list | tuple) or not all(isinstance(item, str) for item in given):
        raise ValueError(f"dataset.options: {option!r} must be a list of texts, however {given!r}")
    return list(given)


def _only_file(path: Path) -> DataFile:
    """The file itself, or the only one in the folder or zip."""
    if not path.exists():
        raise NotFound(f"there is no {path}; set dataset.path in params.yaml to the table")
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
        if len(inside) != 1:
            raise BadData(
                f"has {len(inside)} tables where one is expected",
                file=path,
                value=[file.name for file in inside],
                remedy="set dataset.path in params.yaml to the file itself",
            )
        path = inside[0]
    if path.suffix != ".zip":
        return DataFile(path)
    if not zipfile.is_zipfile(path):
        raise BadData("is no zip file, whatever its name says", file=path, remedy="copy it again")
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(members) != 1:
        raise BadData(
            f"has {len(members)} files where one is expected", file=path, value=members, remedy="unzip the one you mean"
        )
    return DataFile(path, members[0])


def _is_parquet(file: DataFile) -> bool:
    try:
        with file.open() as stream:
            if stream.read(4) != b"PAR1":
                return False
    except OSError:  # a damaged .gz; reading it as text says where
        return False
    if file.member is not None:
        raise BadData("is Parquet in a zip", file=file, remedy="unzip it; Parquet is compressed already")
    return True


def _text(
    text: Delimited, fields: dict[str, str], label: str, time: str | None, positive: str | int | None, separator: str
) -> Iterator[pa.RecordBatch]:
    if positive is None:
        columns = [Column(label, pa.uint8(), True, ZERO_OR_ONE, NOT_BINARY)]
    else:
        columns = [Column(label, required=True)]
    if time:
        columns.append(Column(time, pa.int64(), required=True))
    columns += [Column(name, pa.float64() if kind == NUMERIC else pa.string()) for name, kind in fields.items()]
    for batch in text.read(columns):
        yield _row_batch(batch, fields, label, time, None if positive is None else str(positive), separator)


def _parquet(
    file: DataFile, fields: dict[str, str], label: str, time: str | None, positive: str | int | None, separator: str
) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file.path) as parquet:
            there = parquet.schema_arrow.names
            wanted = [label, *([time] if time else []), *fields]
            absent = [name for name in wanted if name not in there]
            if absent:
                raise BadData(f"no column {', '.join(map(repr, absent))}", file=file, remedy=f"there are {there}")
            row = 0
            for batch in _batches(parquet, wanted):
                plain = {name: _plain(file, name, batch[name], fields.get(name)) for name in wanted}
                _check_label(file, row, label, plain[label], positive)
                checked = pa.RecordBatch.from_pydict(plain)
                row += len(batch)
                yield _row_batch(checked, fields, label, time, positive, separator)
    except (pa.ArrowException, OSError) as error:
        raise BadData(f"cannot be read ({error})", file=file, remedy="write or copy the file again") from error


def _batches(parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """One row group at a time: the reader keeps all it has read of the groups it is given."""
    for group in range(parquet.num_row_groups):
        yield from parquet.iter_batches(row_groups=[group], columns=columns)


def _check_label(file: DataFile, first_row: int, name: str, column: pa.Array, positive: object) -> None:
    good = pc.is_valid(column)
    if positive is None:
        binary = pc.is_in(column, pa.array([0, 1], column.type)) if not pa.types.is_string(column.type) else None
        good = pc.and_(good, binary) if binary is not None else pa.array([False] * len(column))
    if not pc.all(good).as_py():
        row = good.to_pylist().index(False)
        raise BadData(
            f"row {first_row + row + 1}, column {name!r} {NOT_BINARY[0]}",
            file=file,
            value=str(column[row].as_py()),
            remedy=NOT_BINARY[1],
        )


def _plain(file: DataFile, name: str, column: pa.Array, kind: str | None) -> pa.Array:
    """A Parquet column in one of the types that the contract of sources knows."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    given = column.type
    if pa.types.is_large_string(given) or pa.types.is_string_view(given):
        column = column.cast(pa.string())
    elif pa.types.is_boolean(given):
        column = column.cast(pa.uint8())
    elif pa.types.is_temporal(given):
        column = column.cast(pa.int64())
    elif pa.types.is_decimal(given):
        column = column.cast(pa.float64())
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    suits = {
        CATEGORICAL: pa.types.is_integer(column.type) or pa.types.is_string(column.type),
        NUMERIC: numbers,
        BAG: pa.types.is_string(column.type) or pa.types.is_list(given) or pa.types.is_large_list(given),
        None: numbers or pa.types.is_string(column.type),
    }
    if kind == CATEGORICAL and pa.types.is_floating(column.type):  # integers with gaps, as pandas keeps them
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise BadData(
                f"column {name!r} is categorical, however holds fractions ({error})",
                file=file,
                remedy="list it under 'numeric', or store it as text",
            ) from error
    if not suits[kind]:
        raise BadData(
            f"column {name!r} is {given}, which does not suit {kind or 'a label or time'}",
            file=file,
            remedy="list it under another kind, or store it in another type",
        )
    return column


def _row_batch(
    batch: pa.RecordBatch,
    fields: dict[str, str],
    label: str,
    time: str | None,
    positive: str | int | None,
    separator: str,
) -> pa.RecordBatch:
    """The columns as a `Source` names and types them."""
    labels = batch[label]
    if positive is not None:
        labels = pc.equal(labels, pa.scalar(positive).cast(labels.type))
    columns = {LABEL: labels.cast(pa.uint8())}
    if time:
        columns[TIME] = batch[time].cast(pa.int64())
    for name, kind in fields.items():
        column = batch[name]
        if kind == BAG and pa.types.is_string(column.type):
            column = pc.split_pattern(column, separator)
        columns[name] = column.cast(pa.list_(pa.string())) if kind == BAG else column
    return pa.RecordBatch.from_pydict(columns)
