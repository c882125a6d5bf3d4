"""Encodes with Spark: workers count and look up, and this machine writes what they found."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.schema import Schema
from pipeline.data.split import PARTS
from pipeline.encoding import buckets
from pipeline.encoding.counting import estimated
from pipeline.encoding.encoder import Encoder, Table
from pipeline.encoding.fields import SAMPLE
from pipeline.encoding.parts import BINS, TRAIN, PartLabels
from pipeline.encoding.raw_table import RawTable, raw_record
from pipeline.encoding.spark import tasks
from pipeline.encoding.spark.pieces import Pieces, of_raw_table
from pipeline.encoding.spark.remote import read_address
from pipeline.encoding.spark.session import session
from pipeline.encoding.tally import BLOCK_ROWS
from pipeline.encoding.threads import progress_bar
from pipeline.encoding.vocabulary import Vocabulary, write_vocabulary
from pipeline.sources.raw import GROUP_ROWS
from pipeline.sources.source import BAG, NUMERIC, TIME
from pipeline.workflow.address import ADDRESS
from pipeline.workflow.outputs import checksum
from pipeline.workflow.params import Encode

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SPARE = 1.05  # rows to ask for, for each row of a random sample that is needed


@contextlib.contextmanager
def spark_encoder(raw: Path, settings: Encode) -> Iterator[SparkEncoder]:
    """An encoder of the raw table in a folder.

    Raises:
        ValueError: if Spark does not run, or the settings do not suit the rows.
    """
    with session() as spark:
        record = raw_record(raw)
        if ADDRESS in record:
            remote, pieces = read_address(spark, record)
            yield SparkEncoder(remote, pieces, settings)
            pieces.frame.unpersist()  # the application may go on
        else:
            table = RawTable(raw, GROUP_ROWS)
            yield SparkEncoder(table, of_raw_table(spark, table), settings)


class SparkEncoder(Encoder):
    """Encodes with Spark.

    Args:
        table: to encode.
        pieces: its rows.
        settings: see `pipeline.encoding.encode.encode`.
    """

    def __init__(self, table: Table, pieces: Pieces, settings: Encode) -> None:
        self.pieces = pieces
        self.sizes: dict[int, np.ndarray] = {}  # by the number of a piece's first row, its rows in each part
        super().__init__(table, settings)

    def times(self) -> CountedTimes:
        return CountedTimes(self.pieces)

    def different_times(self) -> int:
        return self.pieces.counted([TIME], tasks.each_time).count()

    def training_rows(self, names: Sequence[str]) -> Iterable[tuple[np.ndarray, Mapping[str, pa.Array]]]:
        share = SPARE * buckets.SAMPLE_ROWS / self.pieces.rows / self.settings.split.train
        while True:
            task = tasks.Draw(self.parts, names, self.settings.seed, share)
            found = [drawn for _, drawn in self.pieces.collect([*names, *self.parts.columns], task)]
            if share >= 1 or sum(len(rows) for rows, _ in found) >= buckets.SAMPLE_ROWS:
                return found
            share *= 2

    def split_rows(self) -> None:
        task = tasks.Divide(self.parts, self.table.label_dtype)
        for first, labels in self.pieces.collect([self.plain["labels"], *self.parts.columns], task):
            self.sizes[first] = labels.rows
            self.labels.merge(labels)
        self.check_parts()

    def learn(self, path: Path) -> Schema:
        """Count all values of all fields in one pass, and number the frequent ones."""
        from pyspark import StorageLevel

        vocabularies = [*self.vocabularies.values()]
        task = tasks.Count(self.parts, vocabularies)
        counts = self.pieces.counted([*self.vocabularies, *self.parts.columns], task).persist(StorageLevel.DISK_ONLY)
        self._summarise(counts, vocabularies)
        frequent = counts.where(counts["count"] >= self.limits.min_count).toArrow().combine_chunks()
        counts.unpersist()
        of_field = {number: frequent.filter(pc.equal(frequent["field"], number)) for number in range(len(vocabularies))}
        known = (vocabulary.number(self._values(vocabulary, of_field[i])) for i, vocabulary in enumerate(vocabularies))
        return write_vocabulary(zip(vocabularies, known, strict=True), path)

    def _values(self, vocabulary: Vocabulary, counts: pa.Table) -> pa.Table:
        """The values with their counts, in the type in which a vocabulary looks them up."""
        kind = self.pieces.types[vocabulary.name]
        if vocabulary.kind == NUMERIC:  # numbers of buckets
            kind = pa.int64()
        elif vocabulary.kind == BAG:
            kind = kind.value_type
        column = counts["number" if pa.types.is_integer(kind) else "text"]
        return pa.table({"value": column.cast(kind), "count": counts["count"]})

    def _summarise(self, counts: DataFrame, vocabularies: Sequence[Vocabulary]) -> None:
        """Set what a vocabulary knows of all values, the rare ones among them; see `Vocabulary.learn`."""
        from pyspark.sql import functions as sql

        missing = sql.max(sql.col("text").isNull() & sql.col("number").isNull())
        about = counts.groupBy("field").agg(sql.count("*"), sql.max("count"), missing)
        found = {row[0]: row[1:] for row in about.collect()}
        for number, vocabulary in enumerate(vocabularies):
            vocabulary.distinct, vocabulary.largest, vocabulary.missing = found.get(number, (0, 0, False))
        rich = [number for number, vocabulary in enumerate(vocabularies) if vocabulary.is_rich]
        if not rich:
            return
        # What the sketch of a rich field would say: values count if their cell does.
        cells = counts.where(sql.col("field").isin(rich)).mapInArrow(
            tasks.each_cell, "field int, cell long, count long"
        )
        cells = cells.groupBy("field", "cell").agg(sql.sum("count").alias("total"), sql.max("count").alias("most"))
        full = sql.max(sql.when(sql.col("total") >= self.limits.min_count, sql.col("most")))
        for number, taken, largest in cells.groupBy("field").agg(sql.count("*"), full).collect():
            vocabularies[number].distinct, vocabularies[number].largest = estimated(taken), largest or 1

    def write(self, folder: Path, schema: Schema) -> dict[str, str]:
        """Look up all rows, and write them where they belong in the files, in any order."""
        self.start_tally(schema)
        files, arrays = {}, {}
        for file, part, name, dtype, shape in self.arrays(schema):
            (folder / part).mkdir(exist_ok=True)
            files[part, name] = np.lib.format.open_memmap(folder / file, mode="w+", dtype=dtype, shape=shape)
            with (folder / file).open("rb+") as whole:  # or a full disk would end this process without a word
                os.posix_fallocate(whole.fileno(), 0, whole.seek(0, os.SEEK_END))
            if name != "ids":
                arrays[name] = self.plain[name], dtype
        ends = dict(
            zip(sorted(self.sizes), itertools.accumulate(self.sizes[n] for n in sorted(self.sizes)), strict=True)
        )
        columns = [*self.vocabularies, *self.plain.values(), *self.parts.columns]
        task = tasks.Encode(self.parts, schema, self.vocabularies, arrays, self._sampled(ends))
        samples: dict[int, Mapping[str, pa.Array]] = {}
        with progress_bar("(writing)", self.pieces.rows, " rows") as progress:
            for first, made in self.pieces.stream(columns, task):
                for number, part in enumerate(PARTS):
                    own, end = made.arrays[part], int(ends[first][number])
                    for name, array in own.items():
                        files[part, name][end - len(array) : end] = array
                    self.tally.add(np.full(len(own["labels"]), number), own["labels"], own["ids"].T)
                for name, counts in made.cut.items():
                    self.cut[name] += counts
                if made.sample:
                    samples[first] = made.sample
                progress.update(int(self.sizes[first].sum()))
        for name in self.vocabularies:
            pieces = [samples[first][name] for first in sorted(samples) if name in samples[first]]
            self.samples[name] = pa.concat_arrays(pieces) if pieces else pa.nulls(0)
        for array in files.values():
            array.flush()
        self.labels = _summed({part: files[part, "labels"] for part in PARTS})
        return {file: checksum(folder / file) for file, *_ in self.arrays(schema)}

    def _sampled(self, ends: Mapping[int, np.ndarray]) -> dict[int, int]:
        """By the number of a piece's first row, how many of its training rows are among the first `SAMPLE`."""
        wanted = {first: SAMPLE - int(end[TRAIN] - self.sizes[first][TRAIN]) for first, end in ends.items()}
        return {first: rows for first, rows in wanted.items() if rows > 0}


def _summed(labels: Mapping[str, np.ndarray]) -> PartLabels:
    """The summary of the labels of each part, added up row by row: sums of floats depend on the order."""
    found = PartLabels()
    for number, array in enumerate(labels.values()):
        for start in range(0, len(array), BLOCK_ROWS):
            piece = array[start : start + BLOCK_ROWS]
            found.add(np.full(len(piece), number), piece)
    return found


class CountedTimes:
    """`pipeline.encoding.parts.Times` that Spark counts."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces

    def range(self) -> tuple[int, int, int]:
        """See `pipeline.encoding.parts.Times`."""
        ends = [made for _, made in self.pieces.collect([TIME], tasks.time_range)]
        return self.pieces.rows, min(low for low, _ in ends), max(high for _, high in ends)

    def histogram(self, low: int, high: int, width: int) -> tuple[int, np.ndarray]:
        """See `pipeline.encoding.parts.Times`."""
        counted = self.pieces.counted([TIME], tasks.Binned(low, high, width)).toArrow()
        found = dict(zip(counted["number"].to_pylist(), counted["count"].to_pylist(), strict=True))
        below, counts = found.pop(tasks.BELOW), np.zeros(BINS, dtype=np.int64)
        counts[list(found)] = list(found.values())
        return below, counts
