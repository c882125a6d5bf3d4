"""The best items of users, by a model for retrieval that was trained or exported."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.encoded import SCHEMA_FILE
from pipeline.data.interactions import ITEM, ITEM_KEYS_FILE, USER, USER_KEYS_FILE, Interactions, Pairs
from pipeline.data.schema import PADDING, UNKNOWN
from pipeline.datasets import table
from pipeline.encoding.encoding import Encoding
from pipeline.encoding.new_log import read_log
from pipeline.experiment.saved import encoding_of, read
from pipeline.models.nearest import Search, nearest
from pipeline.models.retriever import Retriever
from pipeline.scoring.files import WRITERS, check_places
from pipeline.training.task import Task
from pipeline.workflow.outputs import read_json, whole
from pipeline.workflow.progress import progress

OF_TEXT = ("delimiter", "missing", "encoding")  # options of the data set `table` that files of users share
SHOWN = 3  # unknown users that a message names


@dataclass(frozen=True)
class Ranked:
    """What was written.

    Args:
        users: their number.
        unknown: users that are left out, because the model does not know them.
        seconds: that it took.
        notes: sentences about what the reader changed.
    """

    users: int
    unknown: Sequence[str | None]
    seconds: float
    notes: Sequence[str]


@dataclass(frozen=True)
class Ranker:
    """A model for retrieval with its users and items.

    Args:
        model: in evaluation mode.
        task: that the model was trained for.
        interactions: all users and items.
        rows: (U, C) the query of each user, with its history.
        known: pairs of a user and an item that the task may leave out.
        users, items: raw keys as text, by number.
        encoding: of the training data.
        options: of the data set `table` for text files of users.
    """

    model: Retriever
    task: Task
    interactions: Interactions
    rows: np.ndarray
    known: Pairs
    users: pa.StringArray
    items: pa.StringArray
    encoding: Path
    options: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Ranker:
        """The model in a folder that `retrain` wrote, or that `export` wrote in the form `trained`.

        Raises:
            ValueError: if the model is none for retrieval, or as `pipeline.experiment.saved.read`.
            FileNotFoundError: if a file is missing.
        """
        model, _, about = read(folder)
        if not isinstance(model, Retriever):
            raise ValueError(f"{folder}: only a model for retrieval ranks items, got task {about.task.name}")
        encoding = encoding_of(folder, about)
        record = read_json(encoding / SCHEMA_FILE)
        options = record["options"] if record["dataset"] == "table" else {}
        users, items = (_keys(encoding / name) for name in (USER_KEYS_FILE, ITEM_KEYS_FILE))
        text = {name: options[name] for name in OF_TEXT if name in options}
        shared, task = model.interactions, about.resolved_task()
        ranker = cls(model, task, shared, shared.latest(), shared.all_pairs(), users, items, encoding, text)
        if not len(ranker.answered):
            raise ValueError(
                f"{folder}: knows no user, because it uses neither the field {ranker.user!r} nor histories; train "
                "a model that uses one of them"
            )
        return ranker

    @property
    def user(self) -> str:
        """Name of the field that identifies users."""
        return self.interactions.keys[USER]

    @cached_property
    def answered(self) -> np.ndarray:
        """(n,) numbers of the users of whom the model knows something, ascending: those with an id of their own, or, of
        a model that does not use the field that identifies users, those with a history."""
        if self.user in self.model.kept.names:
            (slot,) = self.interactions.slots(USER, self.interactions.schema.subset([self.user]))
            return np.flatnonzero(self.interactions.users[:, slot] != UNKNOWN)
        return np.flatnonzero((self.interactions.columns.of_history(self.rows) != PADDING).any(1))

    def after(self, log: Path) -> tuple[Ranker, Sequence[str]]:
        """A ranker for the users of a new log, by what they did there. Its new items are among all items, if the model
        knows items by their content.

        Args:
            log: in the form of the training data; see `pipeline.encoding.new_log.read_log`.

        Returns:
            The ranker; and sentences about what was left out of the log, and about new items.

        Raises:
            ValueError: if the model reads no histories or knows no user of the log, or, as `BadData`, if the log cannot
                be read.
        """
        if self.model.is_graph:
            raise ValueError("a graph model reads no histories; train it again, with the new events")
        by_content = any(f.role == ITEM and f.name != self.interactions.keys[ITEM] for f in self.model.kept.fields)
        new = read_log(log, Encoding.load(self.encoding), self.interactions, self.items, by_content)
        before = pc.index_in(new.users, self.users).fill_null(-1).to_numpy().astype(np.int64)
        (there,) = np.nonzero(before >= 0)
        at, items = self.known.of_users(before[there])
        users, items = np.concatenate([there[at], new.pairs.users]), np.concatenate([items, new.pairs.items])
        made = replace(
            self,
            model=self.model.among(new.interactions),
            interactions=new.interactions,
            rows=new.rows,
            known=Pairs.of(users, items, len(new.users), len(new.items)),
            users=new.users,
            items=new.items,
        )
        if not len(made.answered):
            some = self.users[int(self.answered[0])]
            raise ValueError(f"{log}: must have events of a user that the model knows, e.g. {some}")
        others = made.users.filter(pa.array(~np.isin(np.arange(len(made.users)), made.answered)))
        return made, [*new.notes, *_left_out(others.to_pylist())]

    def numbers(self, keys: pa.Array) -> np.ndarray:
        """(n,) number of each user by its key as text; -1 for one that is not answered, or is null."""
        numbers = pc.fill_null(pc.index_in(keys, self.users, skip_nulls=True), -1).to_numpy().astype(np.int64)
        return np.where(np.isin(numbers, self.answered), numbers, -1)

    def best(self, users: np.ndarray, k: int, search: Search = nearest) -> Iterator[pa.RecordBatch]:
        """The k best items of users (n,): columns user, rank (from 1), item and score, piece by piece."""
        start = 0
        for numbers, scores in self.task.best(self.model, self.rows[users], self.known, k, search):
            there = numbers >= 0
            at, rank = np.nonzero(there)
            yield pa.RecordBatch.from_pydict(
                {
                    "user": self.users.take(pa.array(users[start + at])),
                    "rank": pa.array((rank + 1).astype(np.int32)),
                    "item": self.items.take(pa.array(numbers[there])),
                    "score": pa.array(scores[there]),
                }
            )
            start += len(numbers)


def rank_file(
    ranker: Ranker,
    users: Path | None,
    out: Path,
    k: int,
    column: str | None = None,
    ending: str | None = None,
    search: Search = nearest,
) -> Ranked:
    """Write the k best items of users, whole or not at all. A user that is named several times is ranked once.

    Args:
        ranker: the model.
        users: CSV, TSV or Parquet with a column of users, or a folder of such files; None for all users that
            are answered.
        out: CSV or Parquet, by its ending.
        k: most items of a user.
        column: of the users; by default it is named like the field that identifies them.
        ending: of ``out``, if its name has none.
        search: how the items are found.

    Raises:
        ValueError: if an argument is wrong, the users cannot be read, or the model knows none of them.
    """
    ending, started = ending or out.suffix, time.monotonic()
    if k < 1:
        raise ValueError(f"--top: must be at least 1, got {k}")
    check_places(users, out, ending)
    unknown: list[str | None] = []
    notes: Sequence[str] = ()
    if users is None:
        numbers = ranker.answered
    else:
        keys, notes = _asked(ranker, users, column or ranker.user)
        of_keys = ranker.numbers(keys)
        numbers, unknown = of_keys[of_keys >= 0], keys.filter(pa.array(of_keys < 0)).to_pylist()
        if not len(numbers):
            got = f"got {_named(unknown)}" if unknown else "and there are no rows"
            raise ValueError(
                f"{users}: must name a user that the model knows, e.g. {ranker.users[int(ranker.answered[0])]}, {got}"
            )
    with whole(out) as draft, ExitStack() as stack:
        bar = stack.enter_context(progress(desc="score", total=len(numbers), unit=" users", unit_scale=True))
        writer = None
        for batch in ranker.best(numbers, k, search):
            writer = writer or stack.enter_context(WRITERS[ending](draft, batch.schema))
            writer.write_batch(batch)
            bar.update(len(pc.unique(batch["user"])))
    return Ranked(len(numbers), unknown, time.monotonic() - started, notes)


def sentences(ranked: Ranked) -> Iterator[str]:
    """What was changed and who is left out."""
    yield from ranked.notes
    yield from _left_out(ranked.unknown)


def _left_out(users: Sequence[str | None]) -> Iterator[str]:
    if users:
        yield (
            f"left out {len(users):,} users of whom the model knows nothing, because the training data have no rows of "
            f"them, or too few: {_named(users)}"
        )


def _named(users: Sequence[str | None]) -> str:
    """The first of some users, for a message."""
    named = ["a missing value" if user is None else repr(user) for user in users[:SHOWN]]
    return ", ".join([*named, "..."] if len(users) > SHOWN else named)


def _asked(ranker: Ranker, file: Path, column: str) -> tuple[pa.Array, Sequence[str]]:
    """The distinct users of a file as text, in order, and the notes of its reader."""
    source = table.unlabelled(file, categorical=[column], **ranker.options)
    pieces = [pc.unique(batch[column].cast(pa.string())) for batch in source.batches]
    return pc.unique(pa.chunked_array(pieces, pa.string())), source.notes


def _keys(file: Path) -> pa.StringArray:
    return pq.read_table(file, columns=["key"])["key"].combine_chunks()
