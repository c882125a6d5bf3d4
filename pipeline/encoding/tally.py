"""What the encoded rows say of each field: unknown values, copies, and how well the field alone predicts the label."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.data.schema import PADDING, UNKNOWN, Schema
from pipeline.data.split import PARTS, Split
from pipeline.encoding.parts import TRAIN
from pipeline.metrics.auc import auc_of_groups

SMOOTHING = 10  # rows with the overall share of positives that are added to those of an id
BLOCK_ROWS = 1 << 16


class Tally:
    """Counts that are added up while the rows are written. Sums of whole numbers do not depend on the order of threads.

    Args:
        schema: F fields.
        binary: whether to count the positive rows of each id; the labels are then 0 and 1.
        pairs: numbers of fields that may be copies.
    """

    def __init__(self, schema: Schema, binary: bool, pairs: Iterable[tuple[int, int]]) -> None:
        self.unknown = np.zeros((len(schema), len(PARTS)), dtype=np.int64)  # rows without a known value
        self.positives = [np.zeros(n, dtype=np.int64) for n in schema.cardinalities] if binary else []
        self.copies = set(pairs)  # of which no row differs so far
        self._starts = np.cumsum(schema.widths) - schema.widths
        self._widths = schema.widths
        self._lock = threading.Lock()

    def add(self, part: np.ndarray, labels: np.ndarray, slots: np.ndarray) -> None:
        """Add n rows: their parts (n,) as positions in `PARTS`, labels (n,) and ids (S, n)."""
        positive = np.flatnonzero((part == TRAIN) & (labels == 1)) if self.positives else None
        with self._lock:
            for field, (start, width) in enumerate(zip(self._starts, self._widths, strict=True)):
                own = slots[start : start + width]
                self.unknown[field] += np.bincount(part[own[0] == UNKNOWN], minlength=len(PARTS))
                if positive is not None:
                    chosen = own[:, positive].ravel()
                    _count(self.positives[field], chosen if width == 1 else chosen[chosen != PADDING])
            for one, other in list(self.copies):
                if not np.array_equal(self._of(slots, one), self._of(slots, other)):
                    self.copies.discard((one, other))

    def _of(self, slots: np.ndarray, field: int) -> np.ndarray:
        return slots[self._starts[field] : self._starts[field] + self._widths[field]]

    def aucs(self, schema: Schema, counts: Sequence[np.ndarray], mean: float, val: Split) -> list[float]:
        """AUC on ``val`` of each field alone. A row's score is the share of positives of its id in the training rows.

        The share is smoothed: `SMOOTHING` rows of the overall share are added to those of the id. A bag scores as that
        one of its values whose share is furthest from the overall share.

        Args:
            schema: F fields.
            counts: of each field, training rows of each id from 1.
            mean: share of positives in the training rows.
            val: its rows have both labels.
        """
        shares = []
        for positives, known, unknown in zip(self.positives, counts, self.unknown[:, TRAIN], strict=True):
            rows = np.concatenate([[unknown], known])
            shares.append((positives + SMOOTHING * mean) / (rows + SMOOTHING))
        groups = [np.zeros((2, n), dtype=np.int64) for n in schema.cardinalities]  # rows of label 0 and 1 of each id
        for start in range(0, len(val), BLOCK_ROWS):
            ids, labels = val.slice(start, start + BLOCK_ROWS)
            for field, share in enumerate(shares):
                own = _strongest(self._of(ids.T, field), share, mean)
                for label in (0, 1):
                    _count(groups[field][label], own[labels == label])
        return [_auc(share, *group) for share, group in zip(shares, groups, strict=True)]


def _count(totals: np.ndarray, ids: np.ndarray) -> None:
    """Add 1 for each id. Few ids of a large field do not pay for an array of its cardinality."""
    if len(ids) < len(totals):
        np.add.at(totals, ids, 1)
    else:
        totals += np.bincount(ids, minlength=len(totals))


def _strongest(slots: np.ndarray, share: np.ndarray, mean: float) -> np.ndarray:
    """(width, n) ids -> (n,) the id of each row whose share is furthest from the mean."""
    if len(slots) == 1:
        return slots[0]
    distance = np.where(slots == PADDING, -1, np.abs(share - mean)[slots])
    strongest: np.ndarray = np.take_along_axis(slots, distance.argmax(0)[None], 0)[0]
    return strongest


def _auc(share: np.ndarray, negatives: np.ndarray, positives: np.ndarray) -> float:
    """AUC of rows that are counted by id, with a score for each id."""
    there = np.flatnonzero(negatives + positives)
    scores, group = np.unique(share[there], return_inverse=True)
    by_score = [np.bincount(group, rows[there], len(scores)) for rows in (positives, negatives)]
    return auc_of_groups(*by_score)
