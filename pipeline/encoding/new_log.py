"""A new log of interactions, by what `encode` has learned from another one."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.interactions import EVENT, HISTORY, ITEM, USER, USER_COLUMN, Interactions, Pairs
from pipeline.data.schema import Schema
from pipeline.encoding.catalogue import Catalogue
from pipeline.encoding.encoding import Encoding
from pipeline.encoding.histories import Histories
from pipeline.encoding.log import Log
from pipeline.encoding.raw_table import INTERACTIONS, RawTable, plain
from pipeline.encoding.targets import answers
from pipeline.sources.raw import write_raw
from pipeline.sources.source import BadData, Source
from pipeline.workflow.outputs import write_json
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options

BATCH_ROWS = 1 << 17
UNIT = "time_unit"  # a fact of a data set with times that are not whole numbers


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


def read_log(
    path: Path, encoding: Encoding, known: Interactions, items: pa.StringArray, new_items: bool = True
) -> NewLog:
    """Read a log in the form of the training data, with the options of their data set, and encode it.

    Args:
        path: as ``dataset.path`` of the training data.
        encoding: of the training data.
        known: the encoded interactions.
        items: (I,) raw keys of the known items, as text.
        new_items: whether events with other items count.

    Raises:
        ValueError: if the training data have no histories, or, as `BadData`, if the log cannot be read, or its times
            are in another form.
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
        table, notes = _raw(path, encoding.record, Path(temporary), None if new_items else items)
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
    ids, met = histories.rows(slice(0, len(users)), items_of_log, encoding.look_up)
    rows = np.zeros((len(users), known.columns.number), dtype=np.int32)
    rows[users_of_log, HISTORY:] = ids[:, HISTORY:]
    rows[:, USER_COLUMN] = np.arange(len(users))
    every = users_of_log[log.numbers[USER][events]], items_of_log[log.numbers[ITEM][events]]
    all_items = pa.concat_arrays([items, keys.take(pa.array(new))])
    pairs = Pairs.of(*every, len(users), len(all_items))
    if len(new):
        notes.append(f"new items, which the model knows by their content alone: {len(new):,}")
    if unknown := met[EVENT].unknown if EVENT in met else 0:
        every_one = unknown == met[EVENT].values
        question = "; does this log write them as the training data do?" if every_one else ""
        notes.append(f"{unknown:,} of {met[EVENT].values:,} events in histories are of an unknown type{question}")
    return NewLog(interactions, rows, pairs, users.keys.cast(pa.string()), all_items, notes)


def _raw(
    path: Path, record: Mapping[str, Any], folder: Path, items: pa.StringArray | None
) -> tuple[RawTable, list[str]]:
    """The raw table of a log, written to a folder, and notes on what is left out; with ``items``, all others are."""
    module = plug("datasets", record["dataset"])
    source: Source = module.read(path, **checked_options([module.read], record["options"], "dataset.options"))
    others = _Others(source, items)
    raw = write_raw(dataclasses.replace(source, batches=others), folder / "table.parquet", learnable=False)
    unit, trained = raw["facts"].get(UNIT), record["facts"].get(UNIT)
    if unit != trained:
        raise BadData(
            f"must have times in the form of the training data, {_unit(trained)}",
            file=source.origin,
            value=_unit(unit),
            remedy="write them alike",
        )
    write_json(folder / "raw.json", raw)
    return RawTable(folder, BATCH_ROWS), [*raw["notes"], *others.notes()]


def _unit(unit: str | None) -> str:
    """A unit of time in words."""
    return "whole numbers without a unit" if unit is None else f"moments in {unit}"


class _Others:
    """The batches of a source without the rows of other items, which are counted.

    Args:
        source: of interactions.
        items: those that stay, as text; None: all of them.
    """

    def __init__(self, source: Source, items: pa.StringArray | None) -> None:
        self._source, self._items, self._rows = source, items, 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        about, there = self._source.interactions, 0
        assert about is not None
        for batch in self._source.batches:
            kept = batch
            if self._items is not None:
                kept = batch.filter(pc.is_in(batch[about.item].cast(pa.string()), self._items))
            self._rows += len(batch) - len(kept)
            there += len(kept)
            yield kept
        if self._rows and not there:
            raise BadData(
                "must have an item that the model knows",
                file=self._source.origin,
                remedy="write items as the training data do",
            )

    def notes(self) -> list[str]:
        """What was left out, after the last batch."""
        return [f"left out {self._rows:,} rows of items that the model does not know"] if self._rows else []


def _ids(encoding: Encoding, schema: Schema | None, catalogue: Catalogue) -> np.ndarray:
    """(k, S) ids of the fields of a role, of all users or items."""
    assert schema is not None  # the fields that identify them are among them
    return encoding.ids_of(schema, {name: plain(catalogue.columns[name]) for name in schema.names})[0]
