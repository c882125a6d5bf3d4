"""The raw rows as pieces, over which Spark maps functions."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encoding.raw_table import RawTable

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

COUNTS = "field int, text string, number long, count long"  # of a value, which is a text or a number, or is missing
# (number of the first row, columns of a piece) -> what is made of them
Function = Callable[[int, pa.RecordBatch], Any]


@dataclass(frozen=True)
class Pieces:
    """The rows of a raw table, in pieces of which many fit in memory.

    Args:
        frame: a row for each piece: its ``key``, and what ``read`` needs.
        read: (row of ``frame``, names of columns) -> these columns of the piece; runs on the workers.
        firsts: by key, the number of the piece's first row; pieces that are not there have no rows.
        rows: of all pieces.
        types: of the columns of the fields.
        holders: by name of a column, the column of ``frame`` that ``read`` needs for it; none if it needs the key only.
    """

    frame: DataFrame
    read: Callable[[Mapping[str, Any], Sequence[str]], pa.RecordBatch]
    firsts: Mapping[int, int]
    rows: int
    types: Mapping[str, pa.DataType]
    holders: Mapping[str, str] = field(default_factory=dict)

    def collect(self, columns: Sequence[str], function: Function) -> list[tuple[int, Any]]:
        """Of each piece, the number of its first row and what the function makes of it; in any order."""
        return [(row.first, pickle.loads(row.made)) for row in self._made(columns, function).collect()]

    def stream(self, columns: Sequence[str], function: Function) -> Iterator[tuple[int, Any]]:
        """`collect`, for results that are too large for memory. They wait on the disks of the workers."""
        from pyspark import StorageLevel

        made = self._made(columns, function).persist(StorageLevel.DISK_ONLY)
        made.count()  # all workers compute here; the loop below takes the results of one partition after the other
        for row in made.toLocalIterator(prefetchPartitions=True):
            yield row.first, pickle.loads(row.made)
        made.unpersist()

    def counted(self, columns: Sequence[str], function: Function) -> DataFrame:
        """The counts of values, tables of `COUNTS`, that the function makes of each piece, added up for each value."""
        counts = self._mapped(columns, function, COUNTS)
        return counts.groupBy("field", "text", "number").sum("count").withColumnRenamed("sum(count)", "count")

    def _made(self, columns: Sequence[str], function: Function) -> DataFrame:
        def made(first: int, piece: pa.RecordBatch) -> pa.Table:
            return pa.table({"first": [first], "made": [pickle.dumps(function(first, piece), protocol=5)]})

        return self._mapped(columns, made, "first long, made binary")

    def _mapped(self, columns: Sequence[str], function: Function, schema: str) -> DataFrame:
        read, firsts = self.read, self.firsts

        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for piece in batch.to_pylist():
                    if (first := firsts.get(piece["key"])) is not None:
                        yield from function(first, read(piece, columns)).to_batches()

        needed = {self.holders[name] for name in columns if name in self.holders}
        return self.frame.select("key", *sorted(needed)).mapInArrow(run, schema)


def of_raw_table(spark: SparkSession, table: RawTable) -> Pieces:
    """The row groups of a raw table; all workers must see its file at the same path."""
    schema = table.metadata.schema.to_arrow_schema()
    return Pieces(
        spark.range(0, table.groups, 1, numPartitions=table.groups).withColumnRenamed("id", "key"),
        functools.partial(_of_group, table.path.resolve(), table.coded),
        dict(enumerate(table.firsts[:-1])),
        table.firsts[-1],
        {name: schema.field(name).type for name in table.kinds},
    )


def _of_group(path: Path, coded: Sequence[str], piece: Mapping[str, Any], columns: Sequence[str]) -> pa.RecordBatch:
    with pq.ParquetFile(path, read_dictionary=coded) as file:
        rows = file.read_row_group(piece["key"], columns=columns, use_threads=False)
    return rows.combine_chunks().to_batches()[0]
