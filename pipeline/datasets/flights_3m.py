"""flights-3m of vega-datasets: 3,000,000 flights in the USA from January to June 2001; 20 % were over 15 minutes late.

US Bureau of Transportation Statistics; public domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources import parquet
from pipeline.sources.files import DataFile, find
from pipeline.sources.source import CATEGORICAL, BadData, Source

LATE = 15  # minutes; a flight is late above them
WHERE = (
    "get vega-datasets 3.2.1 (npm pack vega-datasets@3.2.1) and put data/flights-3m.parquet of it into data/flights-3m"
)
FIELDS = [
    *["origin", "destination", "route", "route_hour", "distance"],
    *["minute", "date", "day", "hour", "weekday", "month"],
]
TEXT = ("text", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind), pa.string())
WHOLE = ("whole numbers", pa.types.is_integer, pa.int64())
# By name: what the column must hold, a test of its type, and the type to cast it to.
COLUMNS: dict[str, tuple[str, Callable[[pa.DataType], bool], pa.DataType]] = {
    "date": ("timestamps", pa.types.is_timestamp, pa.timestamp("s")),
    "delay": WHOLE,
    "distance": WHOLE,
    "origin": TEXT,
    "destination": TEXT,
}


def read(path: Path, *, date: bool = True) -> Source:
    """flights-3m.parquet: date, delay in minutes, distance in miles, origin, destination.

    The label is 1 if the delay is above 15. The fields are made of the other columns: ``route`` is origin and
    destination, ``route_hour`` also the hour, ``minute`` counts from midnight, and ``weekday`` from Monday, 0. The time
    is in seconds.

    The publisher does not say whether ``date`` is the scheduled or the real departure. Most times must be real, because
    only 33 % of the minutes are multiples of 5. So ``hour``, ``minute`` and ``route_hour`` tell much about the label,
    and a model of it is no forecast.

    Args:
        path: the file, or a folder with it.
        date: whether the day of the flight, YYYY-MM-DD, is a field too. It says how late the other flights of this day
            are. Set it to False for a split by time, where the days of the test rows are new.

    Raises:
        NotFound: if the file is not there.
        BadData: if it is not as described.
    """
    file = find(path, ["flights-3m.parquet"], "flights-3m", WHERE)
    if not parquet.is_parquet(file):
        raise BadData("is not Parquet", file=file, remedy=WHERE)
    fields = [name for name in FIELDS if name != "date" or date]

    def batches() -> Iterator[pa.RecordBatch]:
        first = 0
        with parquet.readable(file):
            for batch in parquet.read(file, list(COLUMNS)):
                columns = _derived({name: _checked(file, name, batch[name], first) for name in COLUMNS})
                first += len(batch)
                yield pa.RecordBatch.from_pydict({name: columns[name] for name in ("label", "time", *fields)})

    return Source(dict.fromkeys(fields, CATEGORICAL), batches(), str(file), {"min_count": 2})


def _derived(flights: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """The label, the time and all fields, from the columns of the file."""
    at, hour = flights["date"], pc.hour(flights["date"])
    route = pc.binary_join_element_wise(flights["origin"], flights["destination"], "-")
    return {
        "label": pc.cast(pc.greater(flights["delay"], LATE), pa.uint8()),
        "time": pc.cast(at, pa.int64()),
        "origin": flights["origin"],
        "destination": flights["destination"],
        "route": route,
        "route_hour": pc.binary_join_element_wise(route, pc.cast(hour, pa.string()), " "),
        "distance": flights["distance"],
        "minute": pc.add(pc.multiply(hour, 60), pc.minute(at)),
        "date": pc.cast(pc.cast(at, pa.date32()), pa.string()),
        "day": pc.day(at),
        "hour": hour,
        "weekday": pc.day_of_week(at),
        "month": pc.month(at),
    }


def _checked(file: DataFile, name: str, column: pa.Array, first: int) -> pa.Array:
    """A column in the type that `COLUMNS` gives for it. Messages count rows from 1.

    Raises:
        BadData: if its type is another kind, or if a value is missing.
    """
    words, suits, kind = COLUMNS[name]
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not suits(column.type):
        raise BadData(f"column {name!r} must hold {words}, got {column.type}", file=file, remedy=WHERE)
    if column.null_count:
        row = first + column.is_null().to_pylist().index(True) + 1
        raise BadData(f"column {name!r}, row {row:,}: is missing", file=file, remedy="fill it in or remove the row")
    return column.cast(kind, safe=kind != pa.timestamp("s"))  # a fraction of a second is dropped
