"""Assigns rows to the parts train, arch, val and test, and summarises the labels of each part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.data.encoded import Labels
from pipeline.data.split import PARTS, Part
from pipeline.sources.source import TIME

TRAIN = PARTS.index("train")
BINS = 1 << 16
# (columns, title of the progress bar) -> pairs (number of the first row, batch)
Scan = Callable[[Sequence[str], str], Iterator[tuple[int, pa.RecordBatch]]]


def splitmix64(rows: np.ndarray, seed: int) -> np.ndarray:
    """(n,) uint64: a pseudorandom number for each row number, the same on every machine.

    Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators: output number ``row`` of the generator
    whose state starts at the hash of the seed.
    """

    def mixed(z: Any) -> Any:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    start = mixed((np.array([seed], dtype=np.uint64) + np.uint64(1)) * golden)
    numbers: np.ndarray = mixed(start + (rows.astype(np.uint64) + np.uint64(1)) * golden)
    return numbers


def chances(rows: np.ndarray, seed: int) -> np.ndarray:
    """(n,) a pseudorandom number from 0 to 1, 1 excluded, for each row number; see `splitmix64`."""
    drawn: np.ndarray = (splitmix64(rows, seed) >> np.uint64(11)) * 2.0**-53
    return drawn


class Times(Protocol):
    """The times of all rows, too many for memory."""

    def range(self) -> tuple[int, int, int]:
        """Their number, the earliest and the latest."""

    def histogram(self, low: int, high: int, width: int) -> tuple[int, np.ndarray]:
        """The number of times before ``low``, and (BINS,) those up to ``high`` by bins of a width."""


class ScannedTimes:
    """Times that are read in batches.

    Args:
        scan: reads the raw table, once for each call.
    """

    def __init__(self, scan: Scan) -> None:
        self.scan = scan

    def range(self) -> tuple[int, int, int]:
        """See `Times`."""
        rows, low, high = 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min
        for values in self._values():
            rows, low, high = rows + len(values), min(low, values.min()), max(high, values.max())
        return rows, int(low), int(high)

    def histogram(self, low: int, high: int, width: int) -> tuple[int, np.ndarray]:
        """See `Times`."""
        below, counts = 0, np.zeros(BINS, dtype=np.int64)
        for values in self._values():
            below += int(np.count_nonzero(values < low))
            counts += np.bincount(bins(values, low, high, width), minlength=BINS)
        return below, counts

    def _values(self) -> Iterator[np.ndarray]:
        for _, batch in self.scan([TIME], "(times)"):
            yield batch[TIME].to_numpy()


def bins(values: np.ndarray, low: int, high: int, width: int) -> np.ndarray:
    """The bins, ``width`` integers wide from ``low`` on, of those integers that lie from low to high."""
    inside = values[(values >= low) & (values <= high)].astype(np.uint64) - np.uint64(low % 2**64)
    return (inside // np.uint64(width)).astype(np.int64)


class Parts:
    """Assigns rows to parts, by the row's number or by its time.

    Args:
        by: "random" or "time"; see `pipeline.workflow.params.Split`.
        shares: of the rows, one for each of `PARTS`.
        seed: of the random assignment.
        times: of all rows; with "time" they are read a few times.
    """

    def __init__(self, by: str, shares: Sequence[float], seed: int, times: Times) -> None:
        self.bounds = np.cumsum(shares)[:-1]
        self.seed = seed
        self.columns = [TIME] if by == "time" else []  # the columns that a call needs
        self.last_times = self._last_times(times) if self.columns else []

    def __call__(self, first_row: int, batch: pa.RecordBatch) -> np.ndarray:
        """(n,) int64: positions in `PARTS` of the rows of a batch."""
        part: np.ndarray
        if self.columns:
            part = np.searchsorted(self.last_times, batch[TIME].to_numpy(), side="left")
        else:
            drawn = chances(np.arange(first_row, first_row + len(batch)), self.seed)
            part = np.searchsorted(self.bounds, drawn, side="right")
        return part

    def record(self) -> dict[str, Any]:
        """For a split by time, the last time of every part but the last; else empty."""
        return {"last_times": [int(time) for time in self.last_times]} if self.columns else {}

    def _last_times(self, times: Times) -> list[int]:
        """The last time of each part but the last: the earliest time by which enough rows for the share have passed."""
        rows, low, high = times.range()
        return [_ranked(times, int(np.ceil(share * rows - 1e-6)), low, high) for share in self.bounds]


def _ranked(times: Times, rank: int, low: int, high: int) -> int:
    """The rank-th smallest of times from low to high, in a few passes."""
    while low < high:
        width = -(-(high - low + 1) // BINS)
        below, counts = times.histogram(low, high, width)
        chosen = int(np.searchsorted(np.cumsum(counts), rank - below))
        low, high = low + chosen * width, min(high, low + (chosen + 1) * width - 1)
    return low


class PartLabels:
    """Number, sum and range of the labels of each part, updated batch by batch.

    ``ufunc.at`` adds values one by one, so the sums do not depend on the size of the batches.
    """

    def __init__(self) -> None:
        self.rows = np.zeros(len(PARTS), dtype=np.int64)
        self.sums = np.zeros(len(PARTS))
        self.least, self.most = np.full(len(PARTS), np.inf), np.full(len(PARTS), -np.inf)
        self.others = np.zeros(len(PARTS), dtype=np.int64)  # labels that are neither 0 nor 1

    def add(self, part: np.ndarray, labels: np.ndarray) -> None:
        """Add labels (n,), with their parts (n,) as positions in `PARTS`."""
        values = labels.astype(np.float64)
        np.add.at(self.rows, part, 1)
        np.add.at(self.sums, part, values)
        np.minimum.at(self.least, part, values)
        np.maximum.at(self.most, part, values)
        np.add.at(self.others, part[(values != 0) & (values != 1)], 1)

    def merge(self, other: PartLabels) -> None:
        """Add the labels of other rows."""
        self.rows += other.rows
        self.sums += other.sums
        self.least, self.most = np.minimum(self.least, other.least), np.maximum(self.most, other.most)
        self.others += other.others

    def empty(self) -> list[Part]:
        """Parts without rows."""
        return [part for part, rows in zip(PARTS, self.rows, strict=True) if not rows]

    def record(self) -> dict[Part, Labels]:
        """The summary of each part."""
        columns = zip(PARTS, self.rows, self.sums, self.least, self.most, self.others, strict=True)
        return {
            part: Labels(int(rows), float(total / rows), float(least), float(most), binary=not others)
            for part, rows, total, least, most, others in columns
        }
