"""Counts of values, added up in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.encoding.parts import splitmix64

MERGE_ROWS = 1 << 17  # rows of counts to collect before they are added up
SKETCH_BITS = 22  # a sketch has 2 to this many cells
HASHED_BYTES = 64


def summed(tables: Iterable[pa.Table], limit: int | None = None) -> pa.Table:
    """The counts of each value, added up over tables.

    Args:
        tables: with the columns ``value`` and ``count``.
        limit: once there are more values than this, reading may stop; None to read all tables.
    """
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting[1:])) > max(MERGE_ROWS, len(waiting[0])):
            waiting = [_merged(waiting)]
            if limit is not None and len(waiting[0]) > limit:
                break
    return _merged(waiting)


def _merged(tables: Sequence[pa.Table]) -> pa.Table:
    total = pa.concat_tables(tables).group_by("value", use_threads=False).aggregate([("count", "sum")])
    return total.rename_columns({"value": "value", "count_sum": "count"})


class Sketch:
    """Approximate counts of more values than fit in memory: values are hashed to cells, and cells are counted.

    The count of a cell is at least the count of each of its values. So no frequent value is missed, and only a few rare
    values look frequent.
    """

    def __init__(self) -> None:
        self.cells = np.zeros(1 << SKETCH_BITS, dtype=np.uint32)

    def add(self, table: pa.Table) -> None:
        """Add a table of values and counts."""
        np.add.at(self.cells, cells_of(table["value"]), table["count"].to_numpy().astype(np.uint32))

    def distinct(self) -> int:
        """An estimate of the number of values, see `estimated`."""
        return estimated(int(np.count_nonzero(self.cells)))

    def frequent(self, table: pa.Table, min_count: int) -> pa.Table:
        """The rows whose values may occur at least ``min_count`` times."""
        return table.filter(pa.array(self.cells[cells_of(table["value"])] >= min_count))


def cells_of(values: pa.ChunkedArray) -> np.ndarray:
    """(v,) uint64: the cells of a sketch that values fall into; equal for equal values, and spread evenly."""
    if pa.types.is_integer(values.type):
        numbers = pc.fill_null(values, 0).to_numpy()
    else:
        numbers = _text_hashes(values.combine_chunks())
    return splitmix64(numbers, 0) >> np.uint64(64 - SKETCH_BITS)


def estimated(taken: int) -> int:
    """The number of values that take so many cells of a sketch, in three digits: most are within 1 % up to 20 million.

    Source: Whang, Vander-Zanden, Taylor 1990, A Linear-Time Probabilistic Counting Algorithm: of m cells, m exp(-v / m)
    are expected to stay empty.
    """
    cells = 1 << SKETCH_BITS
    estimate = cells * math.log(cells / max(1, cells - taken))
    return int(round(estimate, 2 - math.floor(math.log10(estimate)))) if estimate >= 1 else 0


def _text_hashes(texts: pa.Array) -> np.ndarray:
    """(n,) uint64: sums of the bytes, each multiplied by a random number that depends on its position in the text.

    M. Dietzfelbinger 1996, Universal Hashing and k-Wise Independent Random Variables via Integer Arithmetic
    without Primes. The random numbers repeat after HASHED_BYTES bytes, which only makes collisions more frequent.
    """
    # Concatenation copies a slice, so that its buffers start at its first text.
    texts = pa.concat_arrays([texts.cast(pa.large_binary()), pa.array([], pa.large_binary())])
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[: len(texts) + 1]
    text = np.frombuffer(data or b"", dtype=np.uint8)[ends[0] : ends[-1]]
    places = np.arange(len(text)) - np.repeat(ends[:-1] - ends[0], np.diff(ends))
    numbers = splitmix64(np.arange(HASHED_BYTES), 1)[places % HASHED_BYTES]
    sums = np.zeros(len(text) + 1, dtype=np.uint64)
    np.cumsum((text + np.uint64(1)) * numbers, out=sums[1:])
    return sums[ends[1:] - ends[0]] - sums[ends[:-1] - ends[0]]
