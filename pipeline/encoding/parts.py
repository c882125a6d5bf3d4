"""Which part of the data a row belongs to: train, arch, val or test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.sources.source import TIME, BadData

PARTS = ("train", "arch", "val", "test")
TRAIN = 0
BINS = 1 << 16
Batches = Callable[..., Iterator[tuple[int, pa.RecordBatch]]]  # (columns) -> (number of the first row, batch)


def splitmix64(rows: np.ndarray, seed: int) -> np.ndarray:
    """(n,) uint64: for each row number a random-looking one, the same on every machine.

    Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators: output ``row`` of the generator
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


class Parts:
    """Says which part a row belongs to, from its number or its time."""

    def __init__(self, by: str, shares: Sequence[float], seed: int, batches: Batches) -> None:
        self.bounds = np.cumsum(shares)[:-1]
        self.seed = seed
        self.columns = [TIME] if by == "time" else []
        self.last_times = self._last_times(batches) if self.columns else []

    def __call__(self, first_row: int, batch: pa.RecordBatch) -> np.ndarray:
        """(n,) int64: positions in `PARTS`."""
        part: np.ndarray
        if self.columns:
            part = np.searchsorted(self.last_times, batch[TIME].to_numpy(), side="left")
        else:
            numbers = splitmix64(np.arange(first_row, first_row + len(batch)), self.seed)
            part = np.searchsorted(self.bounds, (numbers >> np.uint64(11)) * 2.0**-53, side="right")
        return part

    def record(self) -> dict[str, Any]:
        return {"last_times": [int(time) for time in self.last_times]} if self.columns else {}

    def _last_times(self, batches: Batches) -> list[int]:
        """The last time of each part but the last: the least by which its share of rows has passed."""

        def times() -> Iterator[np.ndarray]:
            for _, batch in batches([TIME], "(times)"):
                yield batch[TIME].to_numpy()

        rows, low, high = 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min
        for values in times():
            rows, low, high = rows + len(values), min(low, values.min()), max(high, values.max())
        return [_ranked(times, int(np.ceil(share * rows - 1e-6)), int(low), int(high)) for share in self.bounds]


def _ranked(chunks: Callable[[], Iterator[np.ndarray]], rank: int, low: int, high: int) -> int:
    """The rank-th smallest of integers within low..high, in a few passes and without holding them."""
    while low < high:
        width = -(-(high - low + 1) // BINS)
        counts = np.zeros(BINS, dtype=np.int64)
        below = 0
        for values in chunks():
            below += int(np.count_nonzero(values < low))
            inside = values[(values >= low) & (values <= high)].astype(np.uint64) - np.uint64(low % 2**64)
            counts += np.bincount((inside // np.uint64(width)).astype(np.int64), minlength=BINS)
        chosen = int(np.searchsorted(np.cumsum(counts), rank - below))
        low, high = low + chosen * width, min(high, low + (chosen + 1) * width - 1)
    return low


def check_parts(tally: np.ndarray, raw: Path) -> None:
    for part, (zeros, ones) in zip(PARTS, tally, strict=True):
        if not zeros or not ones:
            raise BadData(
                f"part {part!r} would get {zeros:,} rows of label 0 and {ones:,} of label 1, where it needs both",
                file=raw / "table.parquet",
                remedy=f"raise encode.split.{part} in params.yaml, or give more rows",
            )
