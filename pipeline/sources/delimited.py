"""Reads delimited text files: plain, gzipped, or in a zip.

The fast reader's errors name no line. When it fails, a second, slow pass finds the line and names the problem.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipeline.sources.files import DAMAGE, LONGEST_LINE, DataFile
from pipeline.sources.source import BadData
from pipeline.workflow.validation import repeated

# Of text parsed at a time. Blocks of 8 MiB do not fit into the cache and take 1.5 times as long.
BLOCK_BYTES = LONGEST_LINE
DELIMITERS = (",", "\t", ";", "|", " ")  # that a message may propose
CORRECT = "correct the value or remove the line"
OR_MISSING = "correct it, or list it in the option 'missing' of the data set 'table' if it means a missing value"
TEXT = pa.string()
WHOLE_NUMBER = re.compile(r"-?[0-9]+")
csv.field_size_limit(LONGEST_LINE)  # of the slow pass; by default it refuses values that the fast reader takes


@dataclass(frozen=True)
class Column:
    """A column to read, and the rules for its values.

    Args:
        name: in the header.
        type: string, an integer type or a float type. Floats must not be infinite.
        required: whether a missing value, or NaN, is an error.
        allowed: the only values that may occur, if not None.
        because: problem and remedy for the error message if a value is not allowed.
    """

    name: str
    type: pa.DataType = TEXT
    required: bool = False
    allowed: pa.Array | None = None
    because: tuple[str, str] = ("is not allowed", CORRECT)


def binary_label(name: str, remedy: str = CORRECT) -> Column:
    """The column of a label that must be 0 or 1; ``remedy`` is for the error message."""
    return Column(name, pa.uint8(), True, pa.array([0, 1], pa.uint8()), ("must be 0 or 1", remedy))


@dataclass(frozen=True)
class Delimited:
    """A text file of lines with the same number of values, separated by ``delimiter``.

    Blank lines are skipped. A line end inside a quoted value is an error: its usual cause is a stray quote, which would
    swallow the rows after it.

    Args:
        file: plain or gzipped.
        names: of all the columns, or None if the first line holds them.
        delimiter: one character, or the same character twice ("::").
        quoted: whether values may stand in double quotes.
        strip: whether spaces around text are dropped.
        encoding: must extend ASCII, see `extends_ascii`.
        missing: texts that mean a missing value, also with a space before them.
        hint: remedy for the error message if a line has the wrong number of values.
    """

    file: DataFile
    names: Sequence[str] | None
    delimiter: str = ","
    quoted: bool = False
    strip: bool = False
    encoding: str = "utf-8"
    missing: Sequence[str] = ("",)
    hint: str = "correct or remove the line"

    def header(self) -> list[str]:
        """Names of all the columns.

        Raises:
            BadData: if the file is empty, or if a column is named twice.
        """
        if self.names is None:
            names = self.first_values()
        else:
            self.file.first_line()
            names = list(self.names)
        check_distinct(names, self.file, 1 if self.names is None else None)
        return names

    def first_values(self) -> list[str]:
        """The values of the first line, whether it is a header or not.

        Raises:
            BadData: if the file is empty.
        """
        return [value.strip() for value in self._split(self._decoded(self.file.first_line(), 1), 1)]

    def read(self, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
        """The columns, batch by batch.

        Raises:
            BadData: for a bad line or value; the message names the line, the value and the remedy.
        """
        wanted = {column.name for column in columns}

        def fits(values: list[str]) -> bool:
            return wanted <= {value.strip() for value in values}

        try:
            names = self.header()
        except BadData as error:  # another delimiter may split a header that this one cannot
            if self.names is None and self.quoted and (other := self._other_delimiter(1, fits)):
                raise BadData("the header cannot be split", file=self.file, line=1, remedy=other) from error
            raise
        there = set(names)
        absent = [column.name for column in columns if column.name not in there]
        if absent:
            other = self._other_delimiter(1, fits)
            raise BadData(
                f"no column {', '.join(map(repr, absent))}",
                file=self.file,
                line=1,
                remedy=other or f"there are {names} (separated by {self.delimiter!r})",
            )
        types = {column.name: column.type for column in columns}
        if len(self.delimiter) == 2:  # the reader splits at each of the characters, and so finds empty columns between
            names = [part for name in names for part in (name, f"{name} after")][:-1]
            types |= {name: pa.null() for name in names[1::2]}
        elif self.quoted:  # read all columns, to find line ends in any of them
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
        except (ValueError, *DAMAGE) as error:
            self._diagnose(columns, rows, error)

    def line_of(self, row: int) -> int:
        """The number, from 1, of the line that holds a row; rows count from 0."""
        return next(itertools.islice(self._rows(), row, None))[0]

    def _rows(self) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of every line that holds a row."""
        for number, line in self.file.lines():
            if line and (number > 1 or self.names is not None):
                yield number, line

    def _other_delimiter(self, number: int, fits: Callable[[list[str]], bool]) -> str | None:
        """The remedy for a wrong delimiter, if another one splits the line with this number so that it fits."""
        _, line = next(itertools.islice(self.file.lines(), number - 1, None), (number, b""))
        text = self._decoded(line, number)
        for other in DELIMITERS:
            with contextlib.suppress(BadData):  # quotes that do not suit this delimiter
                if other != self.delimiter and fits(dataclasses.replace(self, delimiter=other)._split(text, number)):
                    return _separated_by(other)
        return None

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
            if pa.types.is_floating(column.type):
                if pc.any(pc.is_inf(array)).as_py():
                    raise ValueError(f"an infinite value in column {column.name!r}")
                if column.required and pc.any(pc.is_nan(array)).as_py():
                    raise ValueError(f"a value that is not a number in column {column.name!r}")
        return pa.RecordBatch.from_pydict({column.name: arrays[column.name] for column in columns})

    def _diagnose(self, columns: Sequence[Column], good_rows: int, error: Exception) -> NoReturn:
        """Raise `BadData` for the first bad line after ``good_rows`` rows."""
        names = self.header()
        for number, line in itertools.islice(self._rows(), good_rows, None):
            values = self._split(self._decoded(line, number), number)
            if len(values) != len(names):
                other = self._other_delimiter(number, lambda values: len(values) == len(names) > 1)
                raise BadData(
                    f"must have {len(names)} values, has {len(values)}",
                    file=self.file,
                    line=number,
                    value=line.decode(self.encoding),
                    remedy=other or self.hint,
                ) from error
            for column in columns:
                value = values[names.index(column.name)]
                fault = self._fault(column, value)
                if fault:
                    problem, remedy = fault
                    raise BadData(
                        f"column {column.name!r} {problem}", file=self.file, line=number, value=value, remedy=remedy
                    ) from error
        raise BadData(
            f"cannot be read ({error})", file=self.file, remedy="correct the file or save it again"
        ) from error

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
            remedy = 'close every quote on its line and write a quote within a value as ""; '
            remedy += "line ends within values are not read"
            raise BadData(
                f"malformed quotes ({error})", file=self.file, line=number, value=text, remedy=remedy
            ) from error
        return rows[0] if rows else []

    def _fault(self, column: Column, text: str) -> tuple[str, str] | None:
        """The problem and the remedy of a value; None if the value is good."""
        text = text.strip() if self.strip or not pa.types.is_string(column.type) else text
        if text in self.missing:
            return ("is missing", "fill it in or remove the line") if column.required else None
        remedy = CORRECT if column.required else OR_MISSING
        try:
            value = pa.scalar(text).cast(column.type).as_py()
        except pa.ArrowInvalid:
            if column.allowed is not None:
                return column.because
            if pa.types.is_floating(column.type):
                return "must be a number", remedy
            if WHOLE_NUMBER.fullmatch(text):
                return f"must fit {column.type}", remedy
            return "must be a whole number", remedy
        if column.allowed is not None and value not in column.allowed.to_pylist():
            return column.because
        if isinstance(value, float) and math.isinf(value):
            return "must be finite", CORRECT
        if isinstance(value, float) and math.isnan(value) and column.required:
            return "must be a number", CORRECT
        return None


def _separated_by(other: str) -> str:
    return f"the values are separated by {other!r}: set the option 'delimiter' of the data set 'table'"


def check_distinct(names: Sequence[str], file: DataFile, line: int | None = None) -> None:
    """Raise BadData if two columns of a file have the same name."""
    twice = repeated(names)
    if twice:
        raise BadData(
            "no two columns may have the same name", file=file, line=line, value=twice, remedy="rename one of each"
        )


def extends_ascii(encoding: str) -> bool:
    """Whether Python knows the encoding, and ASCII text has the same bytes in it."""
    try:
        return "\n,".encode(encoding) == b"\n,"
    except LookupError:
        return False
