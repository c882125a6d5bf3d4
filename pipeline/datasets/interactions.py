"""Benchmarks of graph recommenders: users, items, and the publisher's split into training and test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.sources.delimited import Column, Delimited
from pipeline.sources.files import DataFile, find
from pipeline.sources.source import CATEGORICAL, ITEM, TEST, USER, BadData, Interacting, NotFound, Source
from pipeline.workflow.validation import Fraction

LISTS, WEIGHTED = ("train.txt", "test.txt"), ("data1.txt", "test1.txt")
WHERE = (
    f"set dataset.path in params.yaml to the folder or zip that holds {' and '.join(LISTS)}, or "
    f"{' and '.join(WEIGHTED)}, each plain or as .gz"
)
BATCH_ROWS = 1 << 16
MOST_DIGITS = 18  # of a number that certainly fits into int64


def read(path: Path, *, added: Fraction = 0.0) -> Source:
    """Two files in one of the layouts of LightGCN's public code; users and items are whole numbers.

    * ``train.txt`` and ``test.txt``: a line per user, ``user item item ...``, separated by spaces. A user may have no
      items, and may have several lines.
    * ``data1.txt`` and ``test1.txt``, as for LastFM: a line per interaction, ``user item weight``, separated by tabs.
      The weight is left out.

    Args:
        path: the folder or the zip of the files.
        added: wrong interactions to add to the training rows, as a share of them: pairs of a random user and a random
            item that are in neither file, the same ones each time. They tell how much a model suffers from them.

    Raises:
        NotFound: if a file is not there.
        BadData: if a file is not as described.
    """
    if path.is_file() and path.suffix != ".zip":
        raise BadData("is a single file, but the benchmark has two", file=path, remedy=WHERE)
    try:
        train, test = (find(path, [name], "interactions", WHERE) for name in LISTS)
        read_edges = _lists
    except NotFound as missing:
        try:
            train, test = (find(path, [name], "interactions", WHERE) for name in WEIGHTED)
        except NotFound:
            raise missing from None
        read_edges = _weighted
    notes: list[str] = []

    def batches() -> Iterator[pa.RecordBatch]:
        known: list[pa.RecordBatch] = []
        training = 0
        for file, given in ((train, 0), (test, 1)):
            for edges in read_edges(file, notes):
                tests = pa.array(np.full(len(edges), given, np.uint8))
                rows = pa.RecordBatch.from_arrays([*edges.columns, tests], [USER, ITEM, TEST])
                training += 0 if given else len(rows)
                known += [rows] if added else []
                yield rows
        if wrong := round(added * training):
            notes.append(f"{wrong:,} random interactions were added to the training rows")
            yield _wrong(pa.Table.from_batches(known), wrong, str(path))

    roles = {USER: USER, ITEM: ITEM}
    return Source(
        dict.fromkeys(roles, CATEGORICAL),
        batches(),
        str(path),
        {"min_count": 1, "history": 0},
        notes=notes,
        interactions=Interacting(roles, USER, ITEM),
    )


def _wrong(known: pa.Table, number: int, origin: str) -> pa.RecordBatch:
    """Training rows of pairs that are not known, of users and items that are; all pairs differ.

    Raises:
        BadData: if too few pairs are left.
    """
    users, user = np.unique(known[USER].to_numpy(), return_inverse=True)
    items, item = np.unique(known[ITEM].to_numpy(), return_inverse=True)
    taken = np.unique(user * len(items) + item)
    if 2 * (len(taken) + number) > len(users) * len(items):
        raise BadData(
            f"of {len(users) * len(items):,} pairs of a user and an item, {len(taken):,} are known; that leaves too "
            f"few to add {number:,}",
            file=origin,
            remedy="lower dataset.options.added in params.yaml",
        )
    generator, found = np.random.default_rng(0), np.zeros(0, np.int64)
    while len(found) < number:
        drawn = generator.integers(len(users) * len(items), size=2 * number)
        drawn = np.concatenate([found, drawn[~np.isin(drawn, taken)]])
        _, first = np.unique(drawn, return_index=True)
        found = drawn[np.sort(first)]
    pairs = found[:number]
    columns = {USER: users[pairs // len(items)], ITEM: items[pairs % len(items)], TEST: np.zeros(number, np.uint8)}
    return pa.RecordBatch.from_pydict(columns, schema=known.schema)


def _lists(file: DataFile, notes: list[str]) -> Iterator[pa.RecordBatch]:
    """The edges of lines ``user item item ...``; adds to the notes how many users have no items."""
    users: list[int] = []
    items: list[int] = []
    without = 0
    for number, line in file.lines():
        values = line.split()
        for value in values:
            if not value.isdigit() or len(value) > MOST_DIGITS:
                raise BadData(
                    f"users and items must be whole numbers of at most {MOST_DIGITS} digits, separated by spaces",
                    file=file,
                    line=number,
                    value=value.decode(errors="replace"),
                    remedy="correct the value or remove the line",
                )
        if values:
            user, *of_user = map(int, values)
            without += not of_user
            users += [user] * len(of_user)
            items += of_user
        if len(users) >= BATCH_ROWS:
            yield _edges(users, items)
            users, items = [], []
    if users:
        yield _edges(users, items)
    if without:
        notes.append(f"{without:,} lines of {file} name a user without items; they give no rows")


def _edges(users: list[int], items: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({USER: pa.array(users, pa.int64()), ITEM: pa.array(items, pa.int64())})


def _weighted(file: DataFile, notes: list[str]) -> Iterator[pa.RecordBatch]:
    """The edges of lines ``user item weight``; adds to the notes that the weight is left out."""
    notes.append(f"the weights of {file} are left out: each row is one interaction")
    columns = [Column(name, pa.int64(), required=True) for name in (USER, ITEM)]
    hint = "correct or remove the line; it must hold user, item and weight, separated by tabs"
    yield from Delimited(file, [USER, ITEM, "weight"], "\t", hint=hint).read(columns)
