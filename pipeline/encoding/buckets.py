"""Numbers to categories: the log-square rule, and quantiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.encoding.parts import splitmix64

SAMPLE_ROWS = 1 << 17  # training rows from which quantiles are computed


def log_square(values: np.ndarray) -> np.ndarray:
    """floor(ln(v)^2) for v > 2, else floor(v): the rule of the Criteo challenge's winners; (n,) -> (n,) int64.

    Source: Y. Juan et al. 2014, 3 Idiots' Approach for Display Advertising Challenge; Zhao et al. 2021 (AutoDim).

    NOTE[DIFF]: the winners' code gives v <= 2 categories of its own ("SP2"). Here, as in later libraries, the two
    ranges share the categories 1 and 2: v = 1 with v = 3 and 4, and v = 2 with v = 5 (ln(4)^2 = 1.9, ln(5)^2 = 2.6).
    """
    values = values.astype(np.float64)
    large = values > 2
    logs = np.log(values, where=large, out=np.zeros_like(values))
    floors: np.ndarray = np.floor(np.where(large, logs**2, values)).astype(np.int64)
    return floors


def quantile_edges(
    rows: Iterable[tuple[np.ndarray, Mapping[str, pa.Array]]], names: Sequence[str], buckets: int, seed: int
) -> dict[str, np.ndarray]:
    """Inner edges of the buckets of every numeric field, without repetitions.

    They are computed from all training rows if there are at most `SAMPLE_ROWS`, else from a random sample of that many.

    Args:
        rows: training rows in batches; each is their numbers (n,) and their columns (n,) by name.
        names: of the numeric fields.
        buckets: the largest number of buckets.
        seed: of the sample.

    Returns:
        The edges of each field, by name, ascending.
    """
    keys, sample = np.empty(0, dtype=np.uint64), np.empty((0, len(names)))
    for numbers, columns in rows:
        values = np.column_stack([floats(columns[name]) for name in names])
        keys = np.concatenate([keys, splitmix64(numbers, seed + 1)])
        sample = np.concatenate([sample, values])
        if len(keys) > SAMPLE_ROWS:
            kept = np.argpartition(keys, SAMPLE_ROWS)[:SAMPLE_ROWS]
            keys, sample = keys[kept], sample[kept]
    inner = np.linspace(0, 1, buckets + 1)[1:-1]
    edges = {}
    for name, values in zip(names, sample.T, strict=True):
        known = values[~np.isnan(values)]
        edges[name] = np.unique(np.quantile(known, inner)) if len(known) else np.empty(0)
    return edges


def floats(column: pa.Array) -> np.ndarray:
    """(n,) float64 of a column of numbers; NaN for missing values."""
    numbers: np.ndarray = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers
