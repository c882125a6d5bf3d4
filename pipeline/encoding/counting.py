"""Counts of values, added up in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.encoding.parts import splitmix64

MERGE_ROWS = 1 << 17  # counts wait until there are so many, then they are added up
SKETCH_BITS = 22
HASHED_BYTES = 64


def summed(tables: Iterable[pa.Table], limit: int | None = None) -> pa.Table:
    """Counts of values, added up; if there are more than ``limit`` values, perhaps only of the first tables."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting[1:])) > max(MERGE_ROWS, len(waiting[0])):
            waiting = [_merged(waiting)]
            if limit is not None and len(waiting[0]) > limit:
                break
    return _merged(waiting)


def _merged(tables: Sequence[pa.Table]) -> pa.Table:
    summed = pa.concat_tables(tables).group_by("value", use_threads=False).aggregate([("count", "sum")])
    return summed.rename_columns({"value": "value", "count_sum": "count"})


class Sketch:
    """Counts of more values than there is room for: values are hashed to cells, and share a count with their cell.

    A value occurs at most as often as its cell says, so that none that is frequent is missed, and those that are
    frequent in the sketch alone are few.
    """

    def __init__(self) -> None:
        self.cells = np.zeros(1 << SKETCH_BITS, dtype=np.uint32)

    def add(self, table: pa.Table) -> None:
        np.add.at(self.cells, self._cells_of(table["value"]), table["count"].to_numpy().astype(np.uint32))

    def frequent(self, table: pa.Table, min_count: int) -> pa.Table:
        """The rows whose values may occur so often."""
        return table.filter(pa.array(self.cells[self._cells_of(table["value"])] >= min_count))

    @staticmethod
    def _cells_of(values: pa.ChunkedArray) -> np.ndarray:
        """(v,) uint64: the same for equal values, and spread evenly."""
        if pa.types.is_integer(values.type):
            numbers = pc.fill_null(values, 0).to_numpy()
        else:
            numbers = _text_hashes(values.combine_chunks())
        return splitmix64(numbers, 0) >> np.uint64(64 - SKETCH_BITS)


def _text_hashes(texts: pa.Array) -> np.ndarray:
    """(n,) uint64: sums of the bytes, each times a random number that goes with its place in the text.

    M. Dietzfelbinger 1996, Universal Hashing and k-Wise Independent Random Variables via Integer Arithmetic
    without Primes. After HASHED_BYTES bytes the random numbers repeat, which costs collisions and no more.
    """
    texts = pa.concat_arrays([texts.cast(pa.large_binary()), pa.array([], pa.large_binary())])  # without an offset
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[: len(texts) + 1]
    text = np.frombuffer(data or b"", dtype=np.uint8)[ends[0] : ends[-1]]
    places = np.arange(len(text)) - np.repeat(ends[:-1] - ends[0], np.diff(ends))
    numbers = splitmix64(np.arange(HASHED_BYTES), 1)[places % HASHED_BYTES]
    sums = np.zeros(len(text) + 1, dtype=np.uint64)
    np.cumsum((text + np.uint64(1)) * numbers, out=sums[1:])
    return sums[ends[1:] - ends[0]] - sums[ends[:-1] - ends[0]]
