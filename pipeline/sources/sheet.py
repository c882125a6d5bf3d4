"""Reads the first sheet of an Excel workbook (.xlsx)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from pipeline.sources.delimited import CORRECT, Column, check_distinct
from pipeline.sources.files import AGAIN, DataFile
from pipeline.sources.source import BadData
from pipeline.workflow.progress import progress

EXTRA = "pip install -r requirements.lock"  # has the extra [excel]
MOST_TIMES, MOST_BYTES = 50, 16 << 20  # that a workbook may unpack to; about 10 times is usual
WORDS = {pa.string(): "a text", pa.int64(): "a whole number", pa.float64(): "a number"}


def read_sheet(file: DataFile, columns: Sequence[Column]) -> pa.Table:
    """The columns of a sheet whose first row holds their names.

    A text is trimmed, and an empty one is missing. In a column of texts, a whole number is written without decimals,
    and a time as in 2010-12-01 08:26:00. A row without any value is skipped.

    Args:
        file: the workbook.
        columns: of type string, int64 or float64; `Column.allowed` is not checked.

    Raises:
        BadData: if the file is no workbook, lacks a column, or has a wrong value; the message names its row.
        ValueError: if openpyxl is not installed.
    """
    rows = _rows(file)
    names = ["" if name is None else str(name).strip() for name in next(rows, ())]
    check_distinct([name for name in names if name], file, 1)
    absent = [column.name for column in columns if column.name not in names]
    if absent:
        raise BadData(f"no column {', '.join(map(repr, absent))}", file=file, line=1, remedy=f"there are {names}")
    places = [names.index(column.name) for column in columns]
    values: list[list[Any]] = [[] for _ in columns]
    for number, row in enumerate(rows, 2):
        cells = [row[place] if place < len(row) else None for place in places]
        if any(cell is not None for cell in cells):
            for column, cell, own in zip(columns, cells, values, strict=True):
                own.append(_value(file, number, column, cell))
    arrays = [pa.array(own, column.type) for column, own in zip(columns, values, strict=True)]
    return pa.table(arrays, names=[column.name for column in columns])


def _rows(file: DataFile) -> Iterator[tuple[Any, ...]]:
    try:
        import openpyxl
    except ImportError as error:
        remedy = f"install it, e.g. with {EXTRA}, or save the sheet as CSV"
        raise ValueError(f"{file}: a workbook needs the package {error.name}; {remedy}") from error
    with file.open() as stream:
        content = io.BytesIO(stream.read())
    try:
        _check_size(file, content)
        workbook = openpyxl.load_workbook(content, read_only=True, data_only=True)
        sheet = workbook.worksheets[0]
        with progress(desc=f"reading {file.path.name}", total=sheet.max_row, unit=" rows", unit_scale=True) as bar:
            for row in sheet.iter_rows(values_only=True):
                yield row
                bar.update()
        workbook.close()
    except (BadData, GeneratorExit):
        raise
    except Exception as error:  # what openpyxl raises for a damaged file has no common base class
        why = f"is not a workbook ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise BadData(why, file=file, remedy=AGAIN) from error


def _check_size(file: DataFile, content: io.BytesIO) -> None:
    """Raise BadData if the parts of a workbook unpack to far more than they are."""
    packed, unpacked = len(content.getbuffer()), 0
    with zipfile.ZipFile(content) as parts:
        unpacked = sum(part.file_size for part in parts.infolist())
    if unpacked > MOST_TIMES * packed + MOST_BYTES:
        problem = f"must unpack to at most {MOST_TIMES} times its {packed:,} bytes"
        raise BadData(problem, file=file, value=f"{unpacked:,} bytes", remedy="save the sheet as CSV")


def _value(file: DataFile, number: int, column: Column, cell: Any) -> str | int | float | None:
    """A cell as a value of its column.

    Raises:
        BadData: if it is missing but required, or not of the column's type.
    """
    if isinstance(cell, str):
        cell = cell.strip() or None
    if cell is None and not column.required:
        return None
    if cell is None:
        raise BadData(
            f"column {column.name!r} is missing", file=file, line=number, remedy="fill it in or remove the row"
        )
    whole = isinstance(cell, float) and cell.is_integer()
    if pa.types.is_string(column.type):
        if isinstance(cell, datetime):
            return cell.isoformat(" ", "seconds")
        return str(int(cell) if whole else cell)
    if whole or (isinstance(cell, int) and not isinstance(cell, bool)):
        return int(cell) if pa.types.is_integer(column.type) else float(cell)
    if pa.types.is_floating(column.type) and isinstance(cell, float):
        return cell
    problem = f"column {column.name!r} must be {WORDS[column.type]}"
    raise BadData(problem, file=file, line=number, value=str(cell), remedy=CORRECT)
