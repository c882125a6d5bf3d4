"""Reads the text files of data sets where they lie: plain, gzipped, in a zip, or somewhere in a folder.

Reading is fast and says little; when it fails, a second and slow pass finds the line and says what is wrong.
"""

from __future__ import annotations

import codecs
import csv
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipeline.sources.files import DataFile
from pipeline.sources.source import BadData

BLOCK_BYTES = 1 << 20  # of text parsed at a time; 8 MiB, which fall out of the cache, take half as long again
MISSING = "option 'missing' of the data set 'table'"
TEXT = pa.string()
WHOLE_NUMBER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Column:
    """A column to read, and what its values must be.

    Args:
        type: string, an integer type or a float type.
        required: whether a missing value is an error.
        allowed: the only values that may occur, if not None.
        because: what to say, and what to do, if a value is not allowed.
    """

    name: str
    type: pa.DataType = TEXT
    required: bool = False
    allowed: pa.Array | None = None
    because: tuple[str, str] = ("is not allowed", "correct the value or remove the line")


ZERO_OR_ONE = pa.array([0, 1], pa.uint8())


@dataclass(frozen=True)
class Delimited:
    """A text file of lines with the same number of values, separated by ``delimiter``.

    Blank lines are skipped. A line end inside a quoted value is an error: it is a stray quote far more often
    than it is meant, and rows would vanish into it.

    Args:
        names: of all the columns, or None if the first line holds them.
        delimiter: one character, or two equal ones ("::").
        quoted: whether values may stand in double quotes.
        strip: whether spaces around text are dropped.
        missing: texts that stand for a missing value, apart from spaces around them.
        hint: said when a line has the wrong number of values.
    """

    file: DataFile
    names: Sequence[str] | None
    delimiter: str = ","
    quoted: bool = False
    strip: bool = False
    encoding: str = "utf-8"
    missing: Sequence[str] = ("",)
    hint: str = "correct or remove the line"

    def __post_init__(self) -> None:
        try:
            plain = "\n,".encode(self.encoding) == b"\n,"
        except LookupError:
            plain = False
        if not plain:
            raise BadData(
                "cannot be read in this encoding",
                file=self.file,
                value=self.encoding,
                remedy="give one that Python knows and that extends ASCII (utf-8, latin-1, cp1252), or save as UTF-8",
            )

    def header(self) -> list[str]:
        """Names of all the columns.

        Raises:
            BadData: if the file is empty, or if its first line names a column twice.
        """
        line = self.file.first_line()
        if self.names is not None:
            return list(self.names)
        names = [name.strip() for name in self._split(self._decoded(line, 1), 1)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadData("columns occur twice", file=self.file, line=1, value=twice, remedy="rename one of each")
        return names

    def read(self, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
        """The columns, batch by batch.

        Raises:
            BadData: naming the line, the value and the remedy.
        """
        names = self.header()
        absent = [column.name for column in columns if column.name not in names]
        if absent:
            raise BadData(
                f"no column {', '.join(map(repr, absent))}",
                file=self.file,
                line=1,
                remedy=f"there are {names} (separated by {self.delimiter!r})",
            )
        types = {column.name: column.type for column in columns}
        if len(self.delimiter) == 2:  # the reader splits at single characters: an empty column between any two
            names = [part for name in names for part in (name, f"{name} after")][:-1]
            types |= {name: pa.null() for name in names[1::2]}
        elif self.quoted:  # all columns, to find line ends in any
            types |= {name: pa.binary() for name in names if name not in types}
        rows = 0
        try:
            with self.file.open() as stream, self._reader(stream, names, types) as reader:
                for batch in reader:
                    checked = self._checked(batch, columns)
                    yield checked
                    rows += len(batch)
        except BadData:
            raise
        except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            self._diagnose(columns, rows, error)

    def _reader(
        self, stream: pa.NativeFile, names: list[str], types: dict[str, pa.DataType]
    ) -> pyarrow.csv.CSVStreamingReader:
        return pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(
                block_size=BLOCK_BYTES,
                column_names=names,
                skip_rows=int(self.names is None),
                encoding="utf8" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding,
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self.delimiter[0], quote_char='"' if self.quoted else False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=[space + text for text in self.missing for space in ("", " ")],
                strings_can_be_null=True,
            ),
        )

    def _checked(self, batch: pa.RecordBatch, columns: Sequence[Column]) -> pa.RecordBatch:
        arrays = {}
        for name in batch.schema.names:
            array = batch.column(name)
            is_text = pa.types.is_string(array.type) or pa.types.is_binary(array.type)
            if self.quoted and is_text and pc.any(pc.match_substring(array, "\n")).as_py():
                raise ValueError("a quoted value runs past the end of its line")
            if self.strip and pa.types.is_string(array.type):
                array = pc.utf8_trim_whitespace(array)
                gone = pc.is_in(array, pa.array(self.missing, array.type))
                array = pc.if_else(gone, pa.scalar(None, array.type), array)
            arrays[name] = array
        for column in columns:
            array = arrays[column.name]
            if column.required and array.null_count:
                raise ValueError(f"a missing value in column {column.name!r}")
            if column.allowed is not None and not pc.all(pc.is_in(array.drop_null(), column.allowed)).as_py():
                raise ValueError(f"a value that is not allowed in column {column.name!r}")
            if pa.types.is_floating(column.type) and pc.any(pc.is_inf(array)).as_py():
                raise ValueError(f"an infinite value in column {column.name!r}")
        return pa.RecordBatch.from_pydict({column.name: arrays[column.name] for column in columns})

    def _diagnose(self, columns: Sequence[Column], good_rows: int, error: Exception) -> NoReturn:
        """Find the first bad line after ``good_rows`` rows, and say what is wrong with it."""
        names = self.header()
        row = 0
        for number, line in self.file.lines():
            if not line or (number == 1 and self.names is None):
                continue
            row += 1
            if row <= good_rows:
                continue
            values = self._split(self._decoded(line, number), number)
            if len(values) != len(names):
                raise BadData(
                    f"{len(values)} values where {len(names)} are expected",
                    file=self.file,
                    line=number,
                    value=line.decode(self.encoding),
                    remedy=self.hint,
                ) from error
            for column in columns:
                value = values[names.index(column.name)]
                fault = self._fault(column, value)
                if fault:
                    problem, remedy = fault
                    raise BadData(
                        f"column {column.name!r} {problem}", file=self.file, line=number, value=value, remedy=remedy
                    ) from error
        raise BadData(f"cannot be read ({error})", file=self.file, remedy="correct the file or save it anew") from error

    def _decoded(self, line: bytes, number: int) -> str:
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError as error:
            raise BadData(
                f"is not {self.encoding}",
                file=self.file,
                line=number,
                value=line[max(0, error.start - 20) : error.end + 20],
                remedy="give the right encoding (often latin-1 or cp1252), or save the file as UTF-8",
            ) from error

    def _split(self, text: str, number: int) -> list[str]:
        if not self.quoted:
            return text.split(self.delimiter)
        try:
            rows = list(csv.reader([text], delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            raise BadData(
                f"malformed quotes ({error})",
                file=self.file,
                line=number,
                value=text,
                remedy='close every quote on its line and write a quote within a value as ""; '
                "line ends within values are not read",
            ) from error
        return rows[0] if rows else []

    def _fault(self, column: Column, text: str) -> tuple[str, str] | None:
        """What is wrong with a value, and what to do about it; None if it is good."""
        text = text.strip() if self.strip or not pa.types.is_string(column.type) else text
        if text in self.missing:
            return ("is missing", "fill it in or remove the line") if column.required else None
        value: str | int = text
        if pa.types.is_integer(column.type):
            if not WHOLE_NUMBER.fullmatch(text):
                if column.allowed is not None:
                    return column.because
                return "must be a whole number", f"correct it, or name it among the texts that mean missing ({MISSING})"
            value = int(text)
        elif pa.types.is_floating(column.type):
            try:
                infinite = float(text) in (float("inf"), float("-inf"))
            except ValueError:
                return "must be a number", f"correct it, or name it among the texts that mean missing ({MISSING})"
            return ("must be finite", "correct it or remove the line") if infinite else None
        if column.allowed is not None and value not in column.allowed.to_pylist():
            return column.because
        if isinstance(value, int):
            try:
                pa.scalar(value, column.type)
            except (OverflowError, pa.ArrowInvalid):
                return f"does not fit {column.type}", "correct it or remove the line"
        return None
