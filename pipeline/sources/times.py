"""Reads a column of times: whole numbers, ISO 8601 texts, or the types that Parquet has for dates and times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.delimited import WHOLE_NUMBER
from pipeline.sources.source import BadColumn

Part = Literal["year", "month", "day", "hour", "weekday", "date"]
PARTS: dict[Part, Callable[[pa.Array], pa.Array]] = {  # of timestamps without a zone
    "year": pc.year,
    "month": pc.month,
    "day": pc.day,
    "hour": pc.hour,
    "weekday": pc.day_of_week,  # Monday is 0
    "date": lambda moments: moments.cast(pa.date32(), safe=False).cast(pa.string()),
}
# In microseconds any year from 1 to 9999 is a time, in nanoseconds only 1678 to 2261.
FORMS = [pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC")]
LAST_SECOND = 253_402_300_799  # of the year 9999
ISO = "an ISO 8601 time, as in 2024-01-31 or 2024-01-31T12:30:00+01:00"


class Times:
    """Reads one column, batch by batch. The first text decides in which form all texts are.

    Args:
        column: its name.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self.form: pa.DataType | None = None
        self.unit: str | None = None  # of the numbers of `order`: "s", "ms", "us" or "ns"; None if nobody says it

    def __call__(self, column: pa.Array) -> pa.Array:
        """The same times (n,): integers as int64, texts as int64 or timestamps, other types unchanged.

        Raises:
            BadColumn: if a text is not a time, or not in the form of the first one.
        """
        if pa.types.is_string(column.type):
            return self._of_text(column)
        return self._cast(column, pa.int64()) if pa.types.is_integer(column.type) else column

    def _of_text(self, column: pa.Array) -> pa.Array:
        there = column.drop_null()
        if self.form is None and len(there):
            self.form = _form(there[0])
        if self.form is None and len(there):
            row = column.is_valid().index(True).as_py()
            raise self._bad(f"must be a whole number or {ISO}", row, there[0])
        return self._cast(column, self.form or pa.int64())

    def _cast(self, column: pa.Array, kind: pa.DataType) -> pa.Array:
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            row = next(row for row, value in enumerate(column) if value.is_valid and not _fits(value, kind))
            if pa.types.is_integer(column.type):
                raise self._bad("must fit int64", row, column[row]) from None
            if pa.types.is_int64(kind):
                problem = "must be a whole number"
            else:
                zone = "with a zone" if kind.tz else "without a zone"
                problem = f"must be {ISO}, {zone} and with at most {6 if kind.unit == 'us' else 9} decimals"
            raise self._bad(f"{problem}, like the first value", row, column[row]) from None

    def _bad(self, problem: str, row: int, value: pa.Scalar) -> BadColumn:
        remedy = "correct it, or remove the row"
        return BadColumn(self.column, problem, remedy=remedy, row=row, value=value.as_py())

    def order(self, times: pa.Array) -> pa.Array:
        """int64 (n,): a number for each time, larger for a later one, in the unit of its type; seconds for a date32.

        Args:
            times: of a call of this object.

        Raises:
            BadColumn: if a time is missing.
        """
        if times.null_count:
            row = times.is_null().index(True).as_py()
            raise BadColumn(self.column, "is missing", remedy="fill it in or remove the row", row=row)
        if pa.types.is_date32(times.type):
            times = times.cast(pa.timestamp("s"))
        self.unit = "ms" if pa.types.is_date64(times.type) else getattr(times.type, "unit", None)
        if pa.types.is_time32(times.type):
            times = times.cast(pa.int32())
        return times.cast(pa.int64())

    def part(self, times: pa.Array, part: Part) -> pa.Array:
        """The year, month, day of the month, hour, weekday (Monday is 0) as int64, or the date as YYYY-MM-DD.

        Whole numbers are Unix seconds. Times with a zone are taken in UTC, or in the zone of their Parquet type.

        Args:
            times: of a call of this object.
            part: to take.

        Raises:
            BadColumn: if the times do not have this part.
        """
        kind = times.type
        if (part == "hour" and pa.types.is_date(kind)) or (part != "hour" and pa.types.is_time(kind)):
            raise BadColumn(
                self.column, f"has no {part}, because it holds {kind}", remedy="remove the part from the option 'dates'"
            )
        if pa.types.is_int64(kind):
            row = pc.index(pc.or_(pc.greater(times, LAST_SECOND), pc.less(times, -LAST_SECOND)), True).as_py()
            if row >= 0:
                raise BadColumn(
                    self.column,
                    "must be Unix seconds up to the year 9999",
                    remedy="give seconds, not milliseconds, or store it as a date and time",
                    row=row,
                    value=times[row].as_py(),
                )
            times = times.cast(pa.timestamp("s"))
        elif pa.types.is_date(kind):
            times = times.cast(pa.timestamp("s"))
        elif pa.types.is_timestamp(kind) and kind.tz:
            times = pc.local_timestamp(times)
        found: Any = PARTS[part](times)
        return found

    def note(self) -> str | None:
        """Says that the zones of texts were turned into UTC; None if they had none."""
        has_zone = self.form is not None and pa.types.is_timestamp(self.form) and self.form.tz
        return f"times {self.column!r}: with zones, taken in UTC" if has_zone else None


def _form(text: pa.Scalar) -> pa.DataType | None:
    """The type that a text can be cast to; None if it is no time."""
    if WHOLE_NUMBER.fullmatch(text.as_py()):
        return pa.int64()
    return next((kind for kind in FORMS if _fits(text, kind)), None)


def _fits(value: pa.Scalar, kind: pa.DataType) -> bool:
    try:
        value.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True
