"""What the workers make of a piece of the raw rows: the decisions of `pipeline.encoding`, for rows in their middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.schema import Schema
from pipeline.data.split import PARTS, Part
from pipeline.encoding.counting import cells_of
from pipeline.encoding.parts import TRAIN, PartLabels, Parts, bins, chances
from pipeline.encoding.raw_table import plain
from pipeline.encoding.vocabulary import Counts, Vocabulary
from pipeline.sources.source import BAG, LABEL, TIME

BELOW = -1  # stands for the bin of the times before the first one


def time_range(first: int, piece: pa.RecordBatch) -> tuple[int, int]:
    """The earliest and the latest time."""
    times = piece[TIME].to_numpy()
    return int(times.min()), int(times.max())


@dataclass(frozen=True)
class Binned:
    """Counts the times in each bin, and those before the first one; see `pipeline.encoding.parts.Times`."""

    low: int
    high: int
    width: int

    def __call__(self, first: int, piece: pa.RecordBatch) -> pa.Table:
        times = piece[TIME].to_numpy()
        found, counts = np.unique(bins(times, self.low, self.high, self.width), return_counts=True)
        below = int(np.count_nonzero(times < self.low))
        return counts_table(0, pa.array(np.append(found, BELOW)), np.append(counts, below))


def each_time(first: int, piece: pa.RecordBatch) -> pa.Table:
    """Counts every time."""
    found, counts = np.unique(piece[TIME].to_numpy(), return_counts=True)
    return counts_table(0, pa.array(found), counts)


@dataclass(frozen=True)
class Divide:
    """Summarises the labels of each part.

    Args:
        parts: of the rows.
        dtype: of encoded labels.
    """

    parts: Parts
    dtype: str

    def __call__(self, first: int, piece: pa.RecordBatch) -> PartLabels:
        labels = PartLabels()
        labels.add(self.parts(first, piece), piece[LABEL].to_numpy().astype(self.dtype))
        return labels


@dataclass(frozen=True)
class Draw:
    """Takes a random share of the training rows: those that come first in the order in which `quantile_edges` draws.

    Args:
        parts: of the rows.
        names: of the columns to take.
        seed: of the sample.
        share: of the rows.
    """

    parts: Parts
    names: Sequence[str]
    seed: int
    share: float

    def __call__(self, first: int, piece: pa.RecordBatch) -> tuple[np.ndarray, pa.RecordBatch]:
        rows = np.flatnonzero(self.parts(first, piece) == TRAIN)
        rows = rows[chances(first + rows, self.seed + 1) < self.share]
        return first + rows, piece.select(self.names).take(pa.array(rows))


@dataclass(frozen=True)
class Count:
    """Counts the training rows with each value of each field.

    Args:
        parts: of the rows.
        vocabularies: that will be learned.
    """

    parts: Parts
    vocabularies: Sequence[Vocabulary]

    def __call__(self, first: int, piece: pa.RecordBatch) -> pa.Table:
        train = self.parts(first, piece) == TRAIN
        tables = []
        for number, vocabulary in enumerate(self.vocabularies):
            counts = vocabulary.counted(piece[vocabulary.name], train)
            tables.append(counts_table(number, counts["value"].combine_chunks(), counts["count"].to_numpy()))
        return pa.concat_tables(tables)


def counts_table(field: int, values: pa.Array, counts: np.ndarray) -> pa.Table:
    """A table of `pipeline.encoding.spark.pieces.COUNTS`, of distinct values of one field."""
    whole = pa.types.is_integer(values.type)
    return pa.table(
        {
            "field": pa.array(np.full(len(values), field, np.int32)),
            "text": pa.nulls(len(values), pa.string()) if whole else plain(values).cast(pa.string()),
            "number": values.cast(pa.int64()) if whole else pa.nulls(len(values), pa.int64()),
            "count": pa.array(counts, pa.int64()),
        }
    )


def each_cell(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The cell of a `pipeline.encoding.counting.Sketch` that each value of batches of `COUNTS` falls into.

    A missing value falls into that of the empty text, which is also that of the number 0.
    """
    for batch in batches:
        texts, numbers = (pa.chunked_array([batch[name]]) for name in ("text", "number"))
        found = np.where(numbers.is_valid().to_numpy(), cells_of(numbers), cells_of(texts)).astype(np.int64)
        yield pa.RecordBatch.from_pydict({"field": batch["field"], "cell": pa.array(found), "count": batch["count"]})


@dataclass(frozen=True)
class Encode:
    """Looks up all values of all rows.

    Args:
        parts: of the rows.
        schema: of the ids.
        vocabularies: of all fields, learned, by name.
        arrays: what else to write: name of the file, and column with its dtype.
        samples: by the number of a piece's first row, how many of its first training rows to return as they are.
    """

    parts: Parts
    schema: Schema
    vocabularies: Mapping[str, Vocabulary]
    arrays: Mapping[str, tuple[str, str]]
    samples: Mapping[int, int]

    def __call__(self, first: int, piece: pa.RecordBatch) -> Encoded:
        part = self.parts(first, piece)
        slots = np.empty((self.schema.num_slots, len(piece)), dtype=np.int32)
        cut, start = {}, 0
        for field in self.schema.fields:
            vocabulary = self.vocabularies[field.name]
            counts = vocabulary.look_up(piece[field.name], slots[start : start + field.width])
            if vocabulary.kind == BAG:
                cut[field.name] = counts
            start += field.width
        whole = {"ids": np.ascontiguousarray(slots.T)}
        whole |= {name: piece[column].to_numpy().astype(dtype) for name, (column, dtype) in self.arrays.items()}
        arrays = {place: {name: its[part == i] for name, its in whole.items()} for i, place in enumerate(PARTS)}
        rows = pa.array(np.flatnonzero(part == TRAIN)[: self.samples.get(first, 0)])
        names = [name for name, its in self.vocabularies.items() if its.kind != BAG]
        return Encoded(arrays, cut, {name: plain(piece[name].take(rows)) for name in names if len(rows)})


@dataclass(frozen=True)
class Encoded:
    """A piece that is encoded.

    Args:
        arrays: of each part, the rows of each of its files, in order.
        cut: what was cut from bags, by their names.
        sample: raw values of the first training rows of fields other than bags; empty if none were asked for.
    """

    arrays: Mapping[Part, Mapping[str, np.ndarray]]
    cut: Mapping[str, Counts]
    sample: Mapping[str, pa.Array]
