"""The project's encoding in careful pandas: two passes over chunks, with operations on whole columns.

Texts are Arrow strings, the default of pandas 3. ``category`` columns are slower here, and the faster reader,
"pyarrow", does not read in chunks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.encoders import HASHES, MIN_COUNT, NUMBERS, SHARES, Job
from pipeline.encoding.buckets import log_square
from pipeline.encoding.parts import splitmix64

NAMES = [*NUMBERS, *HASHES]
CHUNK_ROWS = 200_000
WAITING = 4  # number of chunks whose counts are kept before they are added up


def prepare(file: Path, folder: Path) -> Job:
    def count_and_write() -> dict[str, float]:
        started = time.perf_counter()
        known, sizes = count(file)
        between = time.perf_counter()
        write(file, folder, known, sizes)
        return {"counting": between - started, "writing": time.perf_counter() - between}

    return count_and_write


def chunks(file: Path) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Rows with bucketed numbers, and the part of each row as a position in `SHARES`."""
    types = {"label": "uint8", **dict.fromkeys(NUMBERS, "float64"), **dict.fromkeys(HASHES, "str")}
    bounds = np.cumsum(list(SHARES.values()))[:-1]
    first = 0
    for chunk in pd.read_csv(file, sep="\t", header=None, names=list(types), dtype=types, chunksize=CHUNK_ROWS):
        drawn = (splitmix64(np.arange(first, first + len(chunk)), 0) >> np.uint64(11)) * 2.0**-53
        for name in NUMBERS:
            values = chunk[name].to_numpy()
            missing = np.isnan(values)
            chunk[name] = np.where(missing, np.nan, log_square(np.where(missing, 0, values)))
        yield chunk, np.searchsorted(bounds, drawn, side="right")
        first += len(chunk)


def count(file: Path) -> tuple[dict[str, pd.Index], np.ndarray]:
    """The values of each field that get an id, the most frequent first, and the rows of each part."""
    counts: dict[str, list[pd.Series]] = {name: [] for name in NAMES}
    sizes = np.zeros(len(SHARES), dtype=int)
    for chunk, part in chunks(file):
        sizes += np.bincount(part, minlength=len(SHARES))
        train = chunk[part == 0]
        for name, waiting in counts.items():
            waiting.append(train[name].value_counts(dropna=False))
            if len(waiting) > WAITING:
                waiting[:] = [_added(waiting)]
    known = {}
    for name, waiting in counts.items():
        total = _added(waiting)
        frequent = total[total >= MIN_COUNT].sort_index().sort_values(ascending=False, kind="stable")
        known[name] = pd.Index(frequent.index)
    return known, sizes


def _added(counts: list[pd.Series]) -> pd.Series:
    return pd.concat(counts).groupby(level=0, dropna=False).sum()


def write(file: Path, folder: Path, known: dict[str, pd.Index], sizes: np.ndarray) -> None:
    """Look all values up, and write ``ids<part>.npy`` and ``labels<part>.npy``."""
    arrays = []
    for number, n in enumerate(sizes.tolist()):
        ids = np.lib.format.open_memmap(folder / f"ids{number}.npy", "w+", np.int32, (n, len(known)))
        labels = np.lib.format.open_memmap(folder / f"labels{number}.npy", "w+", np.uint8, (n,))
        arrays.append((ids, labels))
    ends = np.zeros(len(SHARES), dtype=int)
    for chunk, part in chunks(file):
        block = np.empty((len(chunk), len(known)), dtype=np.int32)
        for slot, (name, index) in enumerate(known.items()):
            block[:, slot] = index.get_indexer(chunk[name]) + 1
        for number, (ids, labels) in enumerate(arrays):
            chosen = np.flatnonzero(part == number)
            place = slice(ends[number], ends[number] + len(chosen))
            ids[place], labels[place] = block[chosen], chunk["label"].to_numpy()[chosen]
            ends[number] += len(chosen)
    for ids, labels in arrays:
        ids.flush()
        labels.flush()
