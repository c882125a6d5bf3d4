"""Finds columns that tell the label: they were often written after it, and no model has them when it must predict."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from pipeline.describing.column import Column
from pipeline.encoding.parts import splitmix64
from pipeline.metrics.auc import auc

DOUBTFUL = 0.9  # from which on a column is to be checked
LEAST_ROWS = 20  # of each label that are predicted
BINS = 100  # of numbers, each with about the same number of rows


def auc_alone(column: Column, labels: np.ndarray) -> float | None:
    """AUC of the column alone: half of the rows give each value its mean label, the other half is predicted by it.

    Numbers are divided into bins. Values that the first half does not have get the mean of all.

    Args:
        column: of texts, numbers or booleans.
        labels: (n,) 0 or 1, NaN where missing.

    Returns:
        The AUC, or None if too few rows are predicted.
    """
    known = np.flatnonzero(~np.isnan(labels))
    codes, labels = _codes(column)[known], labels[known]
    first = splitmix64(known, 0) % np.uint64(2) == 0
    ones = labels[~first].sum()
    if min(ones, len(labels[~first]) - ones) < LEAST_ROWS:
        return None
    totals = np.bincount(codes[first], labels[first], codes.max() + 1) + labels[first].mean()
    scores = totals / (np.bincount(codes[first], minlength=codes.max() + 1) + 1)
    return auc(labels[~first], scores[codes[~first]])


def _codes(column: Column) -> np.ndarray:
    """(n,) a number from 0 for each value or bin; missing values have their own."""
    if column.is_number and column.distinct > BINS:
        numbers = pc.cast(column.values, "float64", safe=False)
        values = numbers.to_numpy(zero_copy_only=False)
        edges = np.unique(np.nanquantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
        bins: np.ndarray = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right"))
        return bins
    codes: np.ndarray = column.values.dictionary_encode(null_encoding="encode").indices.to_numpy()
    return codes.astype(np.int64)
