"""A log of interactions in memory, in the order of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.encoding.raw_table import RawTable
from pipeline.sources.source import BASKET, EVENT, ITEM, TEST, TIME, USER
from pipeline.workflow.outputs import broken


@dataclass(frozen=True, eq=False)
class Log:
    """n events, in the order of time; events of the same time, or without times, are in the order of the raw table.

    Args:
        rows: (n,) int64 row of each event in the raw table.
        numbers: by role, (n,) int64: the user and the item of each event, numbered by first appearance in this order.
        firsts: by role, (k,) the raw row of the first event of each user or item.
        timed: whether events have times.
        times: (n,) int64, ascending; 0 if there are none.
        baskets: (n,) int64; None if there are none.
        events: (n,) types; None if there are none.
        test: (n,) bool, whether the publisher says that the row is for tests; None if it says nothing.
        targets: (n,) bool, whether the event may be predicted; the others only stand in histories.
    """

    rows: np.ndarray
    numbers: Mapping[str, np.ndarray]
    firsts: Mapping[str, np.ndarray]
    timed: bool
    times: np.ndarray
    baskets: np.ndarray | None
    events: pa.DictionaryArray | None
    test: np.ndarray | None
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def read(cls, table: RawTable, about: Mapping[str, Any]) -> Log:
        """The log of a raw table.

        Args:
            table: of interactions.
            about: the entry ``interactions`` of its raw.json.

        Raises:
            ValueError: naming the table, if a user or an item is missing.
        """
        timed: bool = table.record[TIME]
        times = table.column(TIME) if timed else np.zeros(table.firsts[-1], dtype=np.int64)
        rows = np.argsort(times, kind="stable")
        numbers, firsts = {}, {}
        for role in (USER, ITEM):
            codes = _codes(table, about["keys"][role])
            first, numbers[role] = _by_appearance(codes[rows])
            firsts[role] = rows[first]
        events = table.whole(EVENT).take(pa.array(rows)) if about[EVENT] else None
        targets = np.ones(len(rows), dtype=bool)
        if events is not None and about["targets"] is not None:
            wanted = pa.array(about["targets"], events.type.value_type)
            targets = pc.is_in(events, wanted).to_numpy(zero_copy_only=False)
        return cls(
            rows,
            numbers,
            firsts,
            timed,
            times[rows],
            _codes(table, BASKET)[rows] if about[BASKET] else None,
            events,
            table.column(TEST)[rows].astype(bool) if about[TEST] else None,
            targets,
        )


def _codes(table: RawTable, name: str) -> np.ndarray:
    """(n,) int64: equal for equal values of a column without missing values."""
    column = table.whole(name)
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise broken(table.path, f"must have a {name} in every row, but row {row + 1:,} has none")
    codes: np.ndarray = column.indices.to_numpy().astype(np.int64)
    return codes


def _by_appearance(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number codes (n,) by first appearance: first position of each number (k,), and the number of each code (n,)."""
    _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return firsts[order], rank[inverse]
