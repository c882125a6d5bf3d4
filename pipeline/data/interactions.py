"""Interactions of users and items on disk: rows that refer to users and items by number, and a table of each.

A row is one interaction that a model is to predict, e.g. a purchase. It has C entries, int32, see `Columns`:

* ``query``: number of the question, within its part, to which the interaction is one answer. Rows of the same query
  follow each other. A query is a basket, or all of a user's interactions at one time, or all of them in the part.
* ``user``, ``item``: numbers.
* ``repeat``: 1 if the user had the item before the query, in an event that may be predicted, else 0.
* ``history``: the numbers of the H items with which the user last interacted before the query, the latest first;
  `PADDING` fills the rest. H may be 0.
* ``events``: for each field of role "event" the ids of these H interactions, e.g. their type and age.

The fields of a user or of an item stand once, in ``users.npy`` and ``items.npy``, at its number. So a number has a
meaning in all parts, and an item that training rows do not have is known by what it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.schema import UNKNOWN, Schema
from pipeline.workflow.outputs import broken

USERS_FILE, ITEMS_FILE, COUNTS_FILE, PAIRS_FILE = "users.npy", "items.npy", "counts.npy", "pairs.npy"
LATEST_FILE = "latest.npy"  # the histories of all users at the end of the log
USER_KEYS_FILE, ITEM_KEYS_FILE = "users.parquet", "items.parquet"  # number, key as text, training rows
SHARED_FILES = (USERS_FILE, ITEMS_FILE, COUNTS_FILE, PAIRS_FILE, LATEST_FILE, USER_KEYS_FILE, ITEM_KEYS_FILE)
USER, ITEM, EVENT = "user", "item", "event"  # roles of fields
QUERY, USER_COLUMN, ITEM_COLUMN, REPEAT = range(4)  # columns of a row
HISTORY = 4  # the first column of the history


@dataclass(frozen=True)
class Columns:
    """The columns of a row of interactions, from `HISTORY` on.

    Args:
        history: H, length of the history.
        event_fields: fields of role "event".
    """

    history: int
    event_fields: int

    @property
    def number(self) -> int:
        """C, the entries of a row."""
        return HISTORY + self.history * (1 + self.event_fields)

    def of_history(self, rows: Any) -> Any:
        """Rows (n, C) -> item numbers (n, H)."""
        return rows[:, HISTORY : HISTORY + self.history]

    def of_events(self, rows: Any) -> Any:
        """Rows (n, C) -> ids (n, H, fields of role "event")."""
        events = rows[:, HISTORY + self.history :].reshape(len(rows), self.event_fields, self.history)
        return events.swapaxes(1, 2) if isinstance(events, np.ndarray) else events.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Distinct pairs of a user and an item, by user.

    Args:
        starts: (U + 1,) int64; the items of user u are ``items[starts[u]:starts[u + 1]]``.
        items: (n,) int64 numbers, ascending for each user.
    """

    starts: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> Pairs:
        """The distinct pairs of users (n,) and items (n,), which may repeat."""
        distinct = np.unique(users.astype(np.int64) * num_items + items)
        starts = np.searchsorted(distinct, np.arange(num_users + 1, dtype=np.int64) * num_items)
        return cls(starts, distinct % num_items)

    @property
    def users(self) -> np.ndarray:
        """(n,) the user of each pair."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def of_users(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of some users (B,), which may repeat: position in ``users`` (n,) and item (n,)."""
        lengths = self.starts[users + 1] - self.starts[users]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        return np.repeat(np.arange(len(users)), lengths), self.items[np.repeat(self.starts[users], lengths) + within]


@dataclass(frozen=True, eq=False)
class Interactions:
    """What all parts of encoded interactions share.

    Args:
        folder: of the encoded data.
        schema: fields with roles.
        users: (U, S_u) int32 ids of the fields of role "user".
        items: (I, S_i) int32 ids of the fields of role "item".
        counts: (I,) int64, rows of part ``train`` with each item.
        columns: of a row.
        keys: name of the field that identifies a user, by role, and of that which identifies an item.
    """

    folder: Path
    schema: Schema
    users: np.ndarray
    items: np.ndarray
    counts: np.ndarray
    columns: Columns
    keys: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path, schema: Schema, record: Mapping[str, Any]) -> Interactions:
        """The interactions in a folder that ``encode`` wrote.

        Args:
            folder: of the files.
            schema: of schema.json.
            record: the entry ``interactions`` of schema.json.

        Raises:
            ValueError: naming the file that is broken.
            FileNotFoundError: if a file is missing.
        """
        tables = {}
        for role, file in ((USER, USERS_FILE), (ITEM, ITEMS_FILE)):
            tables[role] = _table(folder / file, schema.of_role(role))
        counts = np.load(folder / COUNTS_FILE)
        if counts.shape != (len(tables[ITEM]),):
            raise broken(folder / COUNTS_FILE, f"must have one count for each of {len(tables[ITEM])} items")
        events = schema.of_role(EVENT)
        columns = Columns(record["history"], len(events) if events else 0)
        return cls(folder, schema, tables[USER], tables[ITEM], counts, columns, dict(record["keys"]))

    def slots(self, role: str, kept: Schema) -> np.ndarray:
        """(s,) the columns of a role's table that the fields of ``kept`` fill, in order."""
        own = self.schema.of_role(role)
        return np.zeros(0, np.int64) if own is None else own.slots_of(set(own.names) & set(kept.names))

    def ids_of(self, rows: np.ndarray, kept: Schema) -> np.ndarray:
        """Rows (n, C) -> ids (n, S) of the kept fields, as a row of a log would have them: of the user, of the item,
        and of the latest event of the history, or `UNKNOWN` without a history."""
        last = self.columns.of_events(rows)[:, :1].clip(min=UNKNOWN).reshape(len(rows), -1)
        if not self.columns.history:
            last = np.full((len(rows), self.columns.event_fields), UNKNOWN, dtype=np.int32)
        tables = {USER: (self.users, USER_COLUMN), ITEM: (self.items, ITEM_COLUMN)}
        taken = {role: table[rows[:, column]] for role, (table, column) in tables.items()} | {EVENT: last}
        parts = []
        for field in kept.fields:
            own = self.schema.of_role(field.role)
            assert own is not None
            parts.append(taken[field.role][:, own.slots_of([field.name])])
        return np.concatenate(parts, 1)

    def pairs(self, *parts: str) -> Pairs:
        """The distinct pairs of user and item in the rows of the named parts."""
        files = tuple(self.folder / part / "ids.npy" for part in parts)
        states = tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files)
        return _pairs(files, states, len(self.users), len(self.items))

    def trained_pairs(self) -> Pairs:
        """The pairs of ``train`` and ``arch`` from `PAIRS_FILE`, which is also there when the rows are not."""
        return self._kept_pairs(2)

    def all_pairs(self) -> Pairs:
        """The pairs of all parts, likewise."""
        return self._kept_pairs(4)

    def _kept_pairs(self, parts: int) -> Pairs:
        """The pairs of so many first parts."""
        users, items, part = np.load(self.folder / PAIRS_FILE).T
        kept = part < parts
        return Pairs.of(users[kept], items[kept], len(self.users), len(self.items))

    def latest(self) -> np.ndarray:
        """(U, C) int32: a row for each user with the history at the end of the log; the item, the query and whether it
        repeats are 0."""
        rows = np.zeros((len(self.users), self.columns.number), dtype=np.int32)
        rows[:, USER_COLUMN] = np.arange(len(rows))
        rows[:, HISTORY:] = np.load(self.folder / LATEST_FILE)
        return rows


@functools.lru_cache(8)
def _pairs(files: tuple[Path, ...], states: tuple[tuple[int, int], ...], users: int, items: int) -> Pairs:
    """The pairs of the rows in some files; they are read again when their states, time and size, are others."""
    rows = [np.load(file, mmap_mode="r")[:, [USER_COLUMN, ITEM_COLUMN]] for file in files]
    both = np.concatenate(rows) if rows else np.zeros((0, 2), np.int64)
    return Pairs.of(both[:, 0], both[:, 1], users, items)


def _table(file: Path, schema: Schema | None) -> np.ndarray:
    """The ids of all users or items, checked against the fields of their role."""
    table = np.load(file)
    slots = schema.num_slots if schema else 0
    if table.ndim != 2 or table.shape[1] != slots or table.dtype != np.int32:
        raise broken(file, f"must be of shape (number, {slots}) and type int32, got {table.shape} of {table.dtype}")
    return table
