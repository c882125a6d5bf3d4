"""How often each value occurs in training, and what the most frequent values are.

The ids of a field are sorted by falling frequency, so the most frequent values of all fields are the first ids of each
field. One number per field says which they are, and no map of single values has to be stored.
"""

from __future__ import annotations

import numpy as np

from pipeline.allocation.evidence import Problem
from pipeline.data.schema import PADDING, Schema


def training_counts(problem: Problem) -> np.ndarray:
    """(R,) int64 occurrences in the training rows of each row of the table of all fields.

    Raises:
        ValueError: if there are no training ids.
    """
    if problem.training_ids is None:
        raise ValueError(f"{problem.method} needs the ids of the training rows, got none; encode the data first")
    ids, schema = problem.training_ids(), problem.schema
    counts = np.zeros(schema.num_rows, np.int64)
    for column, field in zip(ids.T, schema.slot_fields, strict=True):  # one by one, as 64-bit copies take much memory
        first, number = schema.first_rows[field], schema.cardinalities[field]
        counts[first : first + number] += np.bincount(column[column != PADDING], minlength=number)
    return counts


def falling(counts: np.ndarray, schema: Schema) -> np.ndarray:
    """(R,) counts that do not rise with the id within a field: each is raised to the largest count of the ids after it.

    Only the unknown id, 0, is out of order in the counts of all training rows. It comes first whatever its count.
    """
    parts = np.split(counts, schema.first_rows[1:])
    return np.concatenate([np.maximum.accumulate(part[::-1])[::-1] for part in parts])


def ranked(counts: np.ndarray, schema: Schema) -> np.ndarray:
    """(R,) int64 rows of the table of all fields by falling frequency, each field's in the order of its ids."""
    return np.argsort(-falling(counts, schema), kind="stable")


def by_frequency(problem: Problem) -> dict[str, np.ndarray]:
    """``order``: (R,) int32 rows of the table of all fields by falling frequency in training; see `ranked`.

    Raises:
        ValueError: if there are no training ids.
    """
    return {"order": ranked(training_counts(problem), problem.schema).astype(np.int32)}


def most_frequent(order: np.ndarray, schema: Schema, number: int) -> np.ndarray:
    """(F,) int64: how many first ids of each field are among the ``number`` most frequent values of all fields.

    Args:
        order: of `ranked`.
        schema: F fields.
        number: of values of all fields.
    """
    fields = np.searchsorted(schema.first_rows, order[:number], side="right") - 1
    return np.bincount(fields, minlength=len(schema))


def frequent(counts: np.ndarray, schema: Schema, least: int) -> np.ndarray:
    """(F,) int64: how many first ids of each field occur at least ``least`` times; at least 1, the unknown id.

    Args:
        counts: (R,) of `training_counts`.
        schema: F fields.
        least: number of occurrences.
    """
    parts = np.split(falling(counts, schema) >= least, schema.first_rows[1:])
    return np.array([max(int(part.sum()), 1) for part in parts], np.int64)
