"""How a text file is laid out: its encoding, the delimiter, the names of its columns, and texts for missing values."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.describing.excerpt import Excerpt
from pipeline.describing.values import TYPED, fits, is_typed
from pipeline.sources.delimited import Delimited
from pipeline.sources.source import BadData

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
SNIFFED_LINES = 1000  # from the start, by which the delimiter and the header are judged
USUAL = 0.9  # the least share of lines with the same number of values, and of typed values in a typed column
ALWAYS_MISSING = {"?", "\\N", "NULL", "null", "N/A", "n/a", "#N/A", "NaN", "nan", "<NA>"}
MISSING_AMONG_NUMBERS = {"NA", "None", "none", "-", "--", "."}  # elsewhere they can be values: NA is Namibia


@dataclass(frozen=True)
class Layout:
    """The options of the data set ``table`` that say how a text file is laid out.

    Args:
        encoding: of the text.
        delimiter: between columns.
        names: of all columns; None if the first line holds them.
    """

    encoding: str
    delimiter: str
    names: tuple[str, ...] | None

    def of(self, excerpt: Excerpt) -> Delimited:
        """An excerpt with this layout, for reading."""
        return Delimited(excerpt, self.names, self.delimiter, quoted=True, strip=True, encoding=self.encoding)

    @property
    def words(self) -> str:
        names = "with a header line" if self.names is None else "without a header line"
        return f"{self.encoding} text, separated by {DELIMITERS[self.delimiter]}, {names}"


def layout_of(excerpt: Excerpt) -> Layout:
    """The layout of a text file.

    Raises:
        BadData: if it is not text in columns that the data set ``table`` can read.
    """
    encoding = encoding_of(excerpt)
    lines = [line.decode(encoding) for _, line in itertools.islice(excerpt.lines(), SNIFFED_LINES) if line.strip()]
    delimiter = delimiter_of(lines, excerpt)
    rows = _rows(lines, delimiter, excerpt)
    names = None if has_header(rows) else tuple(f"column_{place + 1}" for place in range(len(rows[0])))
    return Layout(encoding, delimiter, names)


def encoding_of(excerpt: Excerpt) -> str:
    """utf-8 where the bytes are valid, else cp1252, or latin-1 if a byte has no meaning in cp1252.

    Raises:
        BadData: if the bytes are not text, or text in UTF-16.
    """
    if excerpt.content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in excerpt.content:
        raise BadData(
            "is not plain text, or is text in UTF-16",
            file=excerpt,
            value=excerpt.content[:12],
            remedy="save it as CSV in UTF-8, or as Parquet",
        )
    for encoding in ("utf-8", "cp1252"):
        try:
            excerpt.content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"


def delimiter_of(lines: Sequence[str], file: object) -> str:
    """The delimiter that divides the most lines into the same number of values, at least two.

    Args:
        lines: of the file, from its start.
        file: for the error message.

    Raises:
        BadData: if there is none; the message says what seems to divide the lines instead.
    """
    shares = {}
    for delimiter in DELIMITERS:
        widths = Counter(len(row) for row in _rows(lines, delimiter, file))
        width, count = widths.most_common(1)[0]
        if width > 1 and count >= USUAL * len(lines):
            shares[delimiter] = (count, width)
    if shares:
        return max(shares, key=lambda delimiter: shares[delimiter])
    if all("::" in line for line in lines):
        problem = "is separated by '::', which the data set 'table' does not read"
    elif all(len(line.split()) > 1 for line in lines):
        problem = "seems to be separated by spaces, which the data set 'table' does not read"
    else:
        problem = "has a single column, or lines with different numbers of values"
    remedy = f"write it with a label and at least one field, separated by {', '.join(DELIMITERS.values())}"
    raise BadData(problem, file=file, line=1, value=lines[0], remedy=remedy)


def _rows(lines: Sequence[str], delimiter: str, file: object) -> list[list[str]]:
    """The values of each line; a line end within quotes ends a row, as it does for the reader."""
    try:
        return [row for line in lines for row in csv.reader([line], delimiter=delimiter)]
    except csv.Error as error:
        raise BadData(f"cannot be divided into values ({error})", file=file, remedy="check its quotes") from error


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row holds the names of the columns.

    It does if it holds texts only, and some column is of numbers or dates below it. If no column is, it does if its
    texts differ from each other, and none occurs again in its column. A first row of 0, 1, 2, ... holds names too:
    pandas writes them.
    """
    first = [text.strip() for text in rows[0]]
    if first == [str(place) for place in range(len(first))]:
        return True
    if any(map(is_typed, first)):
        return False
    rest = [[text.strip() for text in row] for row in rows[1:] if len(row) == len(first)]
    columns = [[text for text in column if text] for column in zip(*rest, strict=True)]
    if any(sum(map(is_typed, column)) >= USUAL * len(column) for column in columns if column):
        return True
    again = any(name in column for name, column in zip(first, columns, strict=False))
    return len(set(first)) == len(first) and not again


def missing_texts(columns: Iterable[pa.ChunkedArray]) -> list[str]:
    """The texts in some columns that mean a missing value.

    ``?`` and the like always do. ``NA`` and the like do if the other values of a column are numbers or dates.
    """
    found: set[str] = set()
    for column in columns:
        counts = pc.value_counts(column.drop_null().combine_chunks())
        typed = fits(counts.field("values"), TYPED)
        odd = set(counts.field("values").filter(pc.invert(typed)).to_pylist())
        found |= odd & ALWAYS_MISSING
        if pc.any(typed).as_py() and odd <= ALWAYS_MISSING | MISSING_AMONG_NUMBERS:
            found |= odd
    return sorted(found)
