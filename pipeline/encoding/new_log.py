"""A new log of interactions, by what `encode` has learned from another one."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.interactions import HISTORY, ITEM, USER, USER_COLUMN, Interactions, Pairs
from pipeline.data.schema import Schema
from pipeline.encoding.catalogue import Catalogue
from pipeline.encoding.encoding import Encoding
from pipeline.encoding.histories import Histories
from pipeline.encoding.log import Log
from pipeline.encoding.raw_table import INTERACTIONS, RawTable, plain
from pipeline.encoding.targets import answers
from pipeline.sources.raw import write_raw
from pipeline.workflow.outputs import write_json
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options

BATCH_ROWS = 1 << 17


@dataclass(frozen=True, eq=False)
class NewLog:
    """The users of a new log, and the items of the encoded one and of the new one.

    Args:
        interactions: U users, in the order in which they appear; the I known items, then the new ones.
        rows: (U, C) the query of each user, with the history one unit of time after the last event of the new log.
        pairs: of a user and an item that the new log has as an answer to a query.
        users: (U,) raw keys as text.
        items: (I + new,) likewise.
        notes: sentences about what the reader of the data set left out, and about new items.
    """

    interactions: Interactions
    rows: np.ndarray
    pairs: Pairs
    users: pa.StringArray
    items: pa.StringArray
    notes: Sequence[str]


def read_log(path: Path, encoding: Encoding, known: Interactions, items: pa.StringArray) -> NewLog:
    """Read a log in the form of the training data, with the options of their data set, and encode it.

    Args:
        path: as ``dataset.path`` of the training data.
        encoding: of the training data.
        known: the encoded interactions.
        items: (I,) raw keys of the known items, as text.

    Raises:
        ValueError: if the training data have no histories, or, as `BadData`, if the log cannot be read.
        NotFound: if there is no such log.
    """
    length, oldest = known.columns.history, encoding.record[INTERACTIONS].get("oldest")
    if not length:
        raise ValueError("the training data are encoded without histories; encode them with encode.history above 0")
    if oldest is None:
        raise ValueError(
            "an earlier version encoded the training data, without the age of their oldest events; run "
            "`dvc repro`, which encodes them again"
        )
    with tempfile.TemporaryDirectory(prefix="log-") as temporary:
        table = _raw(path, encoding.record, Path(temporary))
        about = table.interactions
        assert about is not None  # the data set is that of the training data
        log, none = Log.read(table, about), np.zeros(0, dtype=np.int64)
        seen = {role: Catalogue.of(table, about, role, log.firsts[role], none) for role in (USER, ITEM)}
    users, keys = seen[USER], seen[ITEM].keys.cast(pa.string())
    number = pc.index_in(keys, items).fill_null(-1).to_numpy().astype(np.int64)  # of each item that was seen
    new = np.flatnonzero(number < 0)
    number[new] = len(items) + np.arange(len(new))
    of_items = _ids(encoding, known.schema.of_role(ITEM), seen[ITEM])[new]
    interactions = dataclasses.replace(
        known,
        users=_ids(encoding, known.schema.of_role(USER), users),
        items=np.concatenate([known.items, of_items]),
        counts=np.concatenate([known.counts, np.zeros(len(new), dtype=np.int64)]),
    )
    events = answers(log)
    items_of_log, users_of_log = number[seen[ITEM].numbers], users.numbers
    histories = Histories.at_the_end(log, events, length, oldest)
    rows = np.zeros((len(users), known.columns.number), dtype=np.int32)
    rows[users_of_log, HISTORY:] = histories.rows(slice(0, len(users)), items_of_log, encoding.look_up)[0][:, HISTORY:]
    rows[:, USER_COLUMN] = np.arange(len(users))
    every = users_of_log[log.numbers[USER][events]], items_of_log[log.numbers[ITEM][events]]
    all_items = pa.concat_arrays([items, keys.take(pa.array(new))])
    pairs = Pairs.of(*every, len(users), len(all_items))
    notes = list(table.record["notes"])
    if len(new):
        notes.append(f"new items, which the model knows by their content alone: {len(new):,}")
    return NewLog(interactions, rows, pairs, users.keys.cast(pa.string()), all_items, notes)


def _raw(path: Path, record: Mapping[str, Any], folder: Path) -> RawTable:
    """The raw table of a log, written to a folder."""
    module = plug("datasets", record["dataset"])
    source = module.read(path, **checked_options([module.read], record["options"], "dataset.options"))
    write_json(folder / "raw.json", write_raw(source, folder / "table.parquet", learnable=False))
    return RawTable(folder, BATCH_ROWS)


def _ids(encoding: Encoding, schema: Schema | None, catalogue: Catalogue) -> np.ndarray:
    """(k, S) ids of the fields of a role, of all users or items."""
    assert schema is not None  # the fields that identify them are among them
    return encoding.ids_of(schema, {name: plain(catalogue.columns[name]) for name in schema.names})[0]
