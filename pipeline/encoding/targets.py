"""The interactions that are to be predicted: without repetitions, in their parts, and as answers to queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.interactions import ITEM, USER
from pipeline.data.split import PARTS
from pipeline.encoding.log import Log
from pipeline.encoding.parts import TRAIN, chances
from pipeline.sources.source import BadData
from pipeline.workflow.params import Encode

TEST = PARTS.index("test")


@dataclass(frozen=True, eq=False)
class Targets:
    """m events of a log that are to be predicted, by part and query.

    Args:
        events: (m,) int64 positions in the log.
        parts: (m,) int64 positions in `PARTS`, ascending.
        queries: (m,) int64 number of the query within its part, ascending in each part.
        repeats: (m,) bool, whether an event that may be predicted has the same user and item, and is of an earlier time
            than the query; if the split is not by time, whether one is of an earlier part.
        times: (m,) int64 time of the query, the first of its events; 0 if the split is not by time.
        duplicates: number of events that were left out because their query has the item already.
        last_times: of a split by time, the last time of each part but the last; else empty.
    """

    events: np.ndarray
    parts: np.ndarray
    queries: np.ndarray
    repeats: np.ndarray
    times: np.ndarray
    duplicates: int
    last_times: Sequence[int] = ()

    def record(self) -> dict[str, Any]:
        """For a split by time, the last time of every part but the last; else empty."""
        return {"last_times": list(self.last_times)} if self.last_times else {}

    def rows(self, part: int) -> slice:
        """The rows of one part."""
        start, stop = np.searchsorted(self.parts, [part, part + 1]).tolist()
        return slice(start, stop)


def find_targets(log: Log, settings: Encode, path: Path) -> Targets:
    """Divide the events that may be predicted into parts and queries.

    With a split by time, a query is a user's basket; without baskets, all that a user did at one time. Else it is all
    that a user did in a part. An item counts once in a query, and without a split by time once for each user; test rows
    that the publisher gives count on their own.

    Args:
        log: of all events.
        settings: section ``encode`` of params.yaml.
        path: of the raw table, for messages.

    Raises:
        BadData: if the split does not suit the data, or a part would be empty.
    """
    _check(log, settings.split.by, path)
    if not log.targets.any():
        remedy = "correct the types that may be predicted"
        raise BadData("has no event of a type that may be predicted", file=path, remedy=remedy)
    found = _by_time(log, settings) if settings.split.by == "time" else _without_time(log, settings)
    for number, part in enumerate(PARTS):
        if not np.any(found.parts == number):
            remedy = f"raise encode.split.{part} in params.yaml, or give more rows"
            if settings.split.by == "time":
                remedy += ", of more times: rows of the same time stay together"
            if settings.split.by == "given":
                remedy += ": the first row of each user and of each item stays in train"
            if settings.split.by == "given" and part == "test":
                remedy = "give the publisher's test rows, or set encode.split.by to random or time in params.yaml"
            raise BadData(f"no row would go to part {part!r}", file=path, remedy=remedy)
    return found


def _check(log: Log, by: str, path: Path) -> None:
    """Raise BadData if the data cannot be split in this way, or have a split of their own."""
    given = "{by: given, train: 0.8, arch: 0.1, val: 0.1, test: 0.0}"
    if log.test is not None and by != "given":
        raise BadData(
            f"has test rows that its publisher chose, which a split by {by} would mix with the others",
            file=path,
            remedy=f"set encode.split to {given} in params.yaml",
        )
    if log.test is None and by == "given":
        remedy = "set encode.split.by to random or time in params.yaml, and give test a share"
        raise BadData("does not say which rows are for tests", file=path, remedy=remedy)
    if not log.timed and by == "time":
        raise BadData("has no time to split by", file=path, remedy="set encode.split.by to random in params.yaml")


def answers(log: Log) -> np.ndarray:
    """(m,) int64 positions of the events of a log with times that may be predicted; of those of one query and item, the
    first."""
    chosen, _, _, kept = _queries(log)
    return chosen[kept]


def _queries(log: Log) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The events that may be predicted (n,): their positions, the number of the query of each, the first event of each
    query (k,), and those that are kept (m,), because they are the first with their item in their query."""
    chosen = np.flatnonzero(log.targets)
    asked = log.times[chosen] if log.baskets is None else log.baskets[chosen]
    query, firsts = _numbered(_pairs(log.numbers[USER][chosen], _numbered(asked)[0]))
    return chosen, query, firsts, np.sort(_numbered(_pairs(query, log.numbers[ITEM][chosen]))[1])


def _by_time(log: Log, settings: Encode) -> Targets:
    chosen, query, firsts, kept = _queries(log)
    times = log.times[chosen]
    users, items = log.numbers[USER][chosen], log.numbers[ITEM][chosen]
    first = firsts[query[kept]]  # of the query's targets; as events are in the order of time, the earliest one
    # A basket is asked for at the time of its first event, also one that may not be predicted, e.g. a view.
    baskets = log.times if log.baskets is None else log.baskets
    asked = _least(_pairs(log.numbers[USER], _numbered(baskets)[0]), log.times)[chosen[kept]]
    ends = np.ceil(np.cumsum(settings.split.shares)[:-1] * len(kept) - 1e-6).astype(np.int64)
    last_times = np.sort(asked)[np.maximum(ends - 1, 0)]
    repeats = _least(_pairs(users, items), times)[kept] < asked
    parts = np.searchsorted(last_times, asked)
    return _arranged(chosen[kept], parts, first, repeats, asked, len(chosen) - len(kept), last_times.tolist())


def _without_time(log: Log, settings: Encode) -> Targets:
    chosen = np.flatnonzero(log.targets)
    pairs = _pairs(log.numbers[USER], log.numbers[ITEM])
    test = np.zeros(len(log), dtype=bool) if log.test is None else log.test
    events = chosen[np.sort(_numbered(2 * pairs[chosen] + test[chosen])[1])]
    drawn = chances(log.rows[events], settings.seed)
    bounds = np.cumsum(settings.split.shares)[:-1]
    if settings.split.by == "random":
        parts = np.searchsorted(bounds, drawn, side="right")
    else:
        parts = np.full(len(events), TEST)
        rest = np.flatnonzero(~test[events])
        users = log.numbers[USER][events[rest]]
        places = _places(users, drawn[rest], chances(users, settings.seed + 1))
        parts[rest] = np.searchsorted(bounds[:-1], places, side="right")
        order = rest[np.argsort(drawn[rest])]
        for role in (USER, ITEM):  # the first row of each one is for train, so that it is known there
            parts[order[_numbered(log.numbers[role][events[order]])[1]]] = TRAIN
    repeats = _least(pairs[events], parts) < parts
    asked = np.zeros(len(events), dtype=np.int64)
    return _arranged(events, parts, log.numbers[USER][events], repeats, asked, len(chosen) - len(events))


def _places(users: np.ndarray, drawn: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(n,) places of rows from 0 to 1: those of a user are evenly spaced, so that each part gets its share of them.

    Args:
        users: (n,) of the rows.
        drawn: (n,) order the rows of a user.
        shifts: (n,) from 0 to 1, equal for the rows of a user: where their places start.
    """
    order = np.lexsort((drawn, users))
    _, starts, counts = np.unique(users[order], return_index=True, return_counts=True)
    rank = np.arange(len(users)) - np.repeat(starts, counts)
    places = np.empty(len(users))
    places[order] = (rank + shifts[order]) / np.repeat(counts, counts)
    return places


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the values from 0: (n,) number of each, and (k,) the first position of each number."""
    _, firsts, numbers = np.unique(values, return_index=True, return_inverse=True)
    return numbers, firsts


def _pairs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) int64: equal where both are equal. They are whole numbers from 0."""
    return one * (int(other.max(initial=0)) + 1) + other


def _least(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) the least value of all rows of the same group."""
    numbers, firsts = _numbered(groups)
    least = values[firsts]
    np.minimum.at(least, numbers, values)
    return least[numbers]


def _arranged(
    events: np.ndarray,
    parts: np.ndarray,
    query: np.ndarray,
    repeats: np.ndarray,
    times: np.ndarray,
    duplicates: int,
    last_times: Sequence[int] = (),
) -> Targets:
    """The targets by part, query and time. ``query`` (m,) is equal within a query, and orders the queries."""
    order = np.lexsort((events, query, parts))
    parts = parts[order]
    new = np.concatenate([[True], (np.diff(parts) != 0) | (np.diff(query[order]) != 0)])[: len(parts)]
    count = np.cumsum(new) - 1
    queries = count - count[np.searchsorted(parts, parts)]
    return Targets(events[order], parts, queries, repeats[order], times[order], duplicates, last_times)
