"""What a user did before a query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.data.interactions import EVENT, HISTORY, ITEM, USER, Columns
from pipeline.data.schema import PADDING
from pipeline.encoding.log import Log
from pipeline.encoding.parts import TRAIN
from pipeline.encoding.targets import Targets
from pipeline.encoding.vocabulary import Counts

AGE = "event_age"  # name of the field of an event's age; the field of its type is named like its column


LookUp = Callable[[str, pa.Array, np.ndarray], Counts]  # of a field, raw values (n,) to ids in slots (k, n)


@dataclass(frozen=True, eq=False)
class Histories:
    """The last events of a user before a query, for m queries.

    An event is before a query if its time is strictly less. Of events of the same time, the one of the later raw row
    counts as the later. Events that were left out of the targets as duplicates do not count.

    Args:
        log: of all events.
        length: H, the most events of a history.
        past: positions in the log of the events that count, by user, then in the order of the log.
        times: (m,) of the queries.
        starts, ends: (m,) where in ``past`` the events of the query's user begin, and where those before the query end.
        oldest: the largest age of an event in the histories of training rows; 0 if there is none.
    """

    log: Log
    length: int
    past: np.ndarray
    times: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    oldest: int = 0

    @classmethod
    def of_targets(cls, log: Log, targets: Targets, length: int) -> Histories:
        """Those of the targets of a split by time.

        Args:
            log: of all events.
            targets: found in it.
            length: H.
        """
        past = _past(log, targets.events)
        keys = log.numbers[USER][past] * (len(log) + 1) + past
        users = log.numbers[USER][targets.events] * (len(log) + 1)
        starts = np.searchsorted(keys, users)
        ends = np.searchsorted(keys, users + np.searchsorted(log.times, targets.times))
        made = cls(log, length, past, targets.times, starts, ends)
        return replace(made, oldest=made._oldest_in(targets.rows(TRAIN))) if length else made

    @classmethod
    def at_the_end(cls, log: Log, events: np.ndarray, length: int, oldest: int) -> Histories:
        """Those of all users one unit of time after the last event of a log, by the log's own numbers.

        Args:
            log: of all events.
            events: (m,) positions of those that may be predicted, without duplicates.
            length: H.
            oldest: see `Histories`.
        """
        past, every = _past(log, events), np.arange(len(log.firsts[USER]))
        users = log.numbers[USER][past]
        times = np.repeat(log.times[-1:].astype(np.uint64) + np.uint64(1), len(every))
        starts, ends = np.searchsorted(users, every), np.searchsorted(users, every, side="right")
        return cls(log, length, past, times, starts, ends, oldest)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that describe an event of a history."""
        if not self.length:
            return ()
        return (AGE,) if self.log.events is None else (EVENT, AGE)

    def events(self, rows: slice) -> np.ndarray:
        """(n, H) int64 positions in the log of the events before some queries, the latest first; -1 where there is
        none."""
        places = self.ends[rows, None] - 1 - np.arange(self.length)
        return np.where(places >= self.starts[rows, None], self.past[np.maximum(places, 0)], -1)

    def empty(self, rows: slice) -> np.ndarray:
        """(n,) whether there is no event before some queries."""
        empty: np.ndarray = self.starts[rows] == self.ends[rows]
        return empty

    def _oldest_in(self, rows: slice) -> int:
        """The largest age of an event in the histories of some queries; 0 if there is none."""
        some = ~self.empty(rows)
        first = self.past[np.maximum(self.starts[rows], self.ends[rows] - self.length)[some]]
        return int(_ages(self.times[rows][some], self.log.times[first]).max(initial=0))

    def values(self, name: str, rows: slice) -> pa.Array:
        """Raw values of a field of all `events` before some queries, row by row.

        The age is floor(log2(1 + a)) of the time a from the event to the query, in the unit of the log. Events that are
        older than all in the histories of training rows count as old as the oldest of these, so that no model meets an
        age that it has not learned.
        """
        events = self.events(rows)
        there = events >= 0
        if name == EVENT and self.log.events is not None:
            return self.log.events.take(pa.array(events[there]))
        ages = _ages(np.repeat(self.times[rows], there.sum(1)), self.log.times[events[there]])
        return pa.array(np.floor(np.log2(1.0 + np.minimum(ages, np.uint64(self.oldest)))).astype(np.int64))

    def rows(self, rows: slice, items: np.ndarray, look_up: LookUp) -> tuple[np.ndarray, dict[str, Counts]]:
        """Some queries as rows of interactions, filled from the history on.

        Args:
            rows: of the queries.
            items: number of each item, in the order of the log's own numbers.
            look_up: the ids of a field.

        Returns:
            (n, C) int32; and what became of the values of each field of events.
        """
        events, columns = self.events(rows), Columns(self.length, len(self.fields))
        there = events >= 0
        ids = np.full((len(events), columns.number), PADDING, dtype=np.int32)
        columns.of_history(ids)[there] = items[self.log.numbers[ITEM][events[there]]]
        met = {}
        for number, name in enumerate(self.fields):
            values = self.values(name, rows)
            slots = np.empty((1, len(values)), dtype=np.int32)
            met[name] = look_up(name, values, slots)
            start = HISTORY + self.length * (1 + number)
            ids[:, start : start + self.length][there] = slots[0]
        return ids, met


def _past(log: Log, events: np.ndarray) -> np.ndarray:
    """Positions in a log of the events that count in histories, by user; of those that may be predicted, ``events``."""
    kept = ~log.targets
    kept[events] = True
    past = np.flatnonzero(kept)
    return past[np.argsort(log.numbers[USER][past], kind="stable")]


def _ages(now: np.ndarray, then: np.ndarray) -> np.ndarray:
    """(n,) uint64: times from ``then`` to ``now``, exact even if int64 cannot hold them."""
    ages: np.ndarray = now.astype(np.uint64) - then.astype(np.uint64)
    return ages
