"""What a user did before a query."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow as pa

from pipeline.data.interactions import EVENT, USER
from pipeline.encoding.log import Log
from pipeline.encoding.parts import TRAIN
from pipeline.encoding.targets import Targets

AGE = "event_age"  # name of the field of an event's age; the field of its type is named like its column


class Histories:
    """The last events of a user before a query, for the targets of a split by time.

    An event is before a query if its time is strictly less. Of events of the same time, the one of the later raw row
    counts as the later. Events that were left out of the targets as duplicates do not count.

    Args:
        log: of all events.
        targets: found in it.
        length: H, the most events of a history.
    """

    def __init__(self, log: Log, targets: Targets, length: int) -> None:
        self.log, self.targets, self.length = log, targets, length
        kept = ~log.targets
        kept[targets.events] = True
        past = np.flatnonzero(kept)
        self._past = past[np.argsort(log.numbers[USER][past], kind="stable")]  # by user, then in the order of the log
        keys = log.numbers[USER][self._past] * (len(log) + 1) + self._past
        users = log.numbers[USER][targets.events] * (len(log) + 1)
        # Of each query, its time, where in _past the user's events start, and where those before the query end.
        self._times = targets.times
        self._starts = np.searchsorted(keys, users)
        self._ends = np.searchsorted(keys, users + np.searchsorted(log.times, targets.times))
        self._oldest = self._oldest_in_training() if length else 0

    def at_the_end(self) -> Histories:
        """The histories of all users one unit of time after the last event of the log, by the log's own numbers."""
        made = copy.copy(self)
        every = np.arange(len(self.log.firsts[USER]))
        users = self.log.numbers[USER][self._past]
        made._times = np.repeat(self.log.times[-1:].astype(np.uint64) + np.uint64(1), len(every))
        made._starts, made._ends = np.searchsorted(users, every), np.searchsorted(users, every, side="right")
        return made

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that describe an event of a history."""
        if not self.length:
            return ()
        return (AGE,) if self.log.events is None else (EVENT, AGE)

    def events(self, rows: slice) -> np.ndarray:
        """(n, H) int64 positions in the log of the events before the queries of some targets, the latest first; -1
        where there is none."""
        places = self._ends[rows, None] - 1 - np.arange(self.length)
        return np.where(places >= self._starts[rows, None], self._past[np.maximum(places, 0)], -1)

    def empty(self, rows: slice) -> np.ndarray:
        """(n,) whether there is no event before the queries of some targets."""
        empty: np.ndarray = self._starts[rows] == self._ends[rows]
        return empty

    def _oldest_in_training(self) -> int:
        """The largest age of an event in the histories of training rows; 0 if there is none."""
        rows = self.targets.rows(TRAIN)
        some = ~self.empty(rows)
        first = self._past[np.maximum(self._starts[rows], self._ends[rows] - self.length)[some]]
        return int(_ages(self.targets.times[rows][some], self.log.times[first]).max(initial=0))

    def values(self, name: str, rows: slice) -> pa.Array:
        """Raw values of a field of all `events` before the queries of some targets, row by row.

        The age is floor(log2(1 + a)) of the time a from the event to the query, in the unit of the log. Events that are
        older than all in the histories of training rows count as old as the oldest of these, so that no model meets an
        age that it has not learned.
        """
        events = self.events(rows)
        there = events >= 0
        if name == EVENT and self.log.events is not None:
            return self.log.events.take(pa.array(events[there]))
        ages = _ages(np.repeat(self._times[rows], there.sum(1)), self.log.times[events[there]])
        return pa.array(np.floor(np.log2(1.0 + np.minimum(ages, np.uint64(self._oldest)))).astype(np.int64))


def _ages(now: np.ndarray, then: np.ndarray) -> np.ndarray:
    """(n,) uint64: times from ``then`` to ``now``, exact even if int64 cannot hold them."""
    ages: np.ndarray = now.astype(np.uint64) - then.astype(np.uint64)
    return ages
