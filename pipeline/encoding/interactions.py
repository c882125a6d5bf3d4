"""Encodes interactions of users and items, as `pipeline.data.interactions` describes them.

All that is learned from data (numbers, known values, edges of buckets) is learned from the rows of part ``train``. A
user or an item counts once for each of its training rows. The log is held in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.encoded import SCHEMA_FILE, VOCABULARY_FILE, Labels
from pipeline.data.interactions import (
    COUNTS_FILE,
    EVENT,
    HISTORY,
    ITEM,
    ITEM_COLUMN,
    ITEM_KEYS_FILE,
    ITEMS_FILE,
    LATEST_FILE,
    PAIRS_FILE,
    QUERY,
    REPEAT,
    USER,
    USER_COLUMN,
    USER_KEYS_FILE,
    USERS_FILE,
    Columns,
)
from pipeline.data.schema import UNKNOWN, Schema
from pipeline.data.split import LEAST_ROWS, PARTS, Part
from pipeline.encoding.arrays import ArrayFile
from pipeline.encoding.buckets import quantile_edges
from pipeline.encoding.catalogue import Catalogue
from pipeline.encoding.fields import FIELDS_FILE, JUDGING, SAMPLE, Summary, warnings, write_table
from pipeline.encoding.histories import Histories
from pipeline.encoding.log import Log
from pipeline.encoding.parts import TRAIN
from pipeline.encoding.raw_table import RawTable, plain
from pipeline.encoding.record import Limits, encoding_record
from pipeline.encoding.targets import find_targets
from pipeline.encoding.threads import progress_bar
from pipeline.encoding.vocabulary import Counts, Vocabulary, cut_of, write_vocabulary
from pipeline.sources.source import BAG, CATEGORICAL, NUMERIC, BadData
from pipeline.workflow.outputs import checksum, write_json
from pipeline.workflow.params import Encode

CHUNK_CELLS = 1 << 22  # entries of the rows that are in memory at once


def encode_interactions(table: RawTable, about: Mapping[str, Any], folder: Path, settings: Encode) -> dict[str, Any]:
    """Write the encoded interactions, their users and items, their vocabulary and their schema.

    Args:
        table: of interactions.
        about: what they are, the entry ``interactions`` of raw.json.
        folder: created. It has ``<part>/ids.npy`` (n, C) int32 and ``<part>/labels.npy`` (n,) uint8 for every part,
            ``users.npy``, ``items.npy`` and ``counts.npy`` as in `pipeline.data.interactions`; ``pairs.npy`` (n, 3)
            int32, the distinct pairs of user and item, and the number of the first part that has each; ``latest.npy``,
            for each user the columns of a row from the history on, at the end of the log; ``vocabulary.parquet``,
            ``schema.json`` and ``fields.csv`` as `pipeline.encoding.encode.encode` writes them; and ``users.parquet``
            and ``items.parquet``: number, key (as text), rows (of training).
        settings: section ``encode`` of params.yaml.

    Returns:
        The contents of schema.json.

    Raises:
        ValueError: if the settings do not suit the data; `BadData` names the part and the remedy.
    """
    encoder = _Encoder(table, about, settings)
    folder.mkdir(parents=True)
    schema = encoder.learn(folder / VOCABULARY_FILE)
    checksums = encoder.write_catalogues(folder, schema) | encoder.write_rows(folder)
    checksums |= encoder.write_pairs(folder) | encoder.write_latest(folder)
    checksums[VOCABULARY_FILE] = checksum(folder / VOCABULARY_FILE)
    record = {**schema.to_dict(), "sha256": checksums, **encoder.record()}
    write_table(record["summaries"], folder / FIELDS_FILE)
    write_json(folder / SCHEMA_FILE, record)
    return record


def _history(table: RawTable, settings: Encode) -> int:
    """H, the length of a history.

    Raises:
        BadData: if there is to be one, but the split is not by time.
    """
    by = settings.split.by
    if by == "time":
        default: int = table.record["defaults"].get("history", 0)
        return default if settings.history is None else settings.history
    if settings.history:
        raise BadData(
            f"can have histories only with a split by time, and encode.history is {settings.history} with one by {by}",
            file=table.path,
            remedy="set encode.history to 0 or null, or encode.split.by to time in params.yaml",
        )
    return 0


class _Encoder:
    """The encoding of one log; its public steps are called in the order of their definitions.

    Args:
        table: of the log.
        about: the entry ``interactions`` of its raw.json.
        settings: section ``encode`` of params.yaml.

    Raises:
        ValueError: if the settings do not suit the data.
    """

    def __init__(self, table: RawTable, about: Mapping[str, Any], settings: Encode) -> None:
        self.table, self.about, self.settings = table, about, settings
        self.limits = Limits.of(settings, table.record["defaults"])
        history = _history(table, settings)
        self.log = Log.read(table, about)
        self.targets = find_targets(self.log, settings, table.path)
        self.histories = Histories.of_targets(self.log, self.targets, history)
        self.columns = Columns(history, len(self.histories.fields))
        if taken := sorted({*table.kinds} & {*self.histories.fields}):
            remedy = "rename the field, or set encode.history to 0 in params.yaml"
            raise BadData(
                f"has fields {taken}, and histories have fields of these names", file=table.path, remedy=remedy
            )
        train = self.targets.events[self.targets.rows(TRAIN)]
        self.catalogues = {
            role: Catalogue.of(table, about, role, self.log.firsts[role], self.log.numbers[role][train])
            for role in (USER, ITEM)
        }
        self.roles = about["roles"] | dict.fromkeys(self.histories.fields, EVENT)
        self.kinds = table.kinds | dict.fromkeys(self.histories.fields, CATEGORICAL)
        edges = {}
        numeric = [name for name, kind in self.kinds.items() if kind == NUMERIC]
        if settings.numeric == "quantiles" and numeric:
            rows = ((np.arange(r.start, r.stop), {n: self._values(n, r) for n in numeric}) for r in self._chunks(TRAIN))
            edges = quantile_edges(rows, numeric, settings.buckets, settings.seed)
        self.edges = edges
        self.vocabularies = {
            name: Vocabulary(name, kind, edges.get(name), self.limits.max_bag) for name, kind in self.kinds.items()
        }
        self.cut = {name: Counts() for name, kind in self.kinds.items() if kind == BAG}
        # By field of events, what became of the values in the histories of each part.
        self.met = {name: dict.fromkeys(PARTS, Counts()) for name in self.histories.fields}

    def learn(self, path: Path) -> Schema:
        """Learn and write the vocabularies, field by field."""

        def known() -> Iterator[tuple[Vocabulary, pa.Table]]:
            with progress_bar("(counting)", len(self.vocabularies), " fields") as progress:
                for name, vocabulary in self.vocabularies.items():
                    yield (
                        vocabulary,
                        vocabulary.learn(functools.partial(self._training_values, name), self.limits.min_count),
                    )
                    progress.update()

        return write_vocabulary(known(), path, self.roles)

    def _training_values(self, name: str) -> Iterator[tuple[pa.Array, np.ndarray]]:
        for rows in self._chunks(TRAIN):
            values = self._values(name, rows)
            yield values, np.ones(len(values), dtype=bool)

    def _values(self, name: str, rows: slice) -> pa.Array:
        """Raw values of a field in some rows of the targets; of a field of events, those in their histories."""
        role = self.roles[name]
        if role == EVENT:
            return self.histories.values(name, rows)
        return self.catalogues[role].columns[name].take(pa.array(self._numbers(role, rows)))

    def _numbers(self, role: str, rows: slice) -> np.ndarray:
        """(n,) numbers of the users or the items of some rows of the targets."""
        return self.catalogues[role].numbers[self.log.numbers[role][self.targets.events[rows]]]

    def _chunks(self, part: int) -> Iterator[slice]:
        """The rows of a part, in pieces whose histories fit in memory."""
        whole = self.targets.rows(part)
        return _pieces(whole.start, whole.stop, self.columns.number)

    def write_catalogues(self, folder: Path, schema: Schema) -> dict[str, str]:
        """Look up and write all users and items; return the files' checksums."""
        sums = {}
        self.slots: dict[str, np.ndarray] = {}  # by field of users and items, (k,) the first id of each
        for role, file, keys in ((USER, USERS_FILE, USER_KEYS_FILE), (ITEM, ITEMS_FILE, ITEM_KEYS_FILE)):
            catalogue = self.catalogues[role]
            own = schema.subset(catalogue.columns)
            slots = np.empty((own.num_slots, len(catalogue)), dtype=np.int32)
            start = 0
            for field in own.fields:
                free = slots[start : start + field.width]
                counts = self.vocabularies[field.name].look_up(catalogue.columns[field.name], free)
                self.slots[field.name] = free[0]
                if field.name in self.cut:
                    self.cut[field.name] += counts
                start += field.width
            sums[file] = _write(folder / file, "<i4", slots.T)
            pq.write_table(catalogue.table(), folder / keys)
            sums[keys] = checksum(folder / keys)
        return sums | {COUNTS_FILE: _write(folder / COUNTS_FILE, "<i8", self.catalogues[ITEM].counts)}

    def write_rows(self, folder: Path) -> dict[str, str]:
        """Look up and write the rows of all parts; return the files' checksums."""
        sums = {}
        with progress_bar("(writing)", len(self.targets.events), " rows") as progress:
            for number, part in enumerate(PARTS):
                whole = self.targets.rows(number)
                count = whole.stop - whole.start
                with ArrayFile(folder / part / "ids.npy", "<i4", (count, self.columns.number)) as file:
                    for rows in self._chunks(number):
                        file.append(self._rows(part, rows))
                        progress.update(rows.stop - rows.start)
                sums[f"{part}/ids.npy"] = file.sha256
                sums[f"{part}/labels.npy"] = _write(folder / part / "labels.npy", "|u1", np.ones(count))
        return sums

    def _rows(self, part: Part, rows: slice) -> np.ndarray:
        """(n, C) int32: some rows of the targets."""
        targets = self.targets
        ids, met = self.histories.rows(rows, self.catalogues[ITEM].numbers, self._look_up)
        ids[:, QUERY], ids[:, REPEAT] = targets.queries[rows], targets.repeats[rows]
        ids[:, USER_COLUMN], ids[:, ITEM_COLUMN] = self._numbers(USER, rows), self._numbers(ITEM, rows)
        for name, counts in met.items():
            self.met[name][part] += counts
        return ids

    def _look_up(self, name: str, values: pa.Array, slots: np.ndarray) -> Counts:
        return self.vocabularies[name].look_up(values, slots)

    def write_pairs(self, folder: Path) -> dict[str, str]:
        """Write the distinct pairs of all parts, each with the first part that has it; return the file's checksum."""
        every = slice(0, len(self.targets.events))
        pairs = np.stack([self._numbers(USER, every), self._numbers(ITEM, every), self.targets.parts], 1)
        first = np.unique(pairs, axis=0)
        kept = np.append(True, (np.diff(first[:, :2], axis=0) != 0).any(1))
        return {PAIRS_FILE: _write(folder / PAIRS_FILE, "<i4", first[kept])}

    def write_latest(self, folder: Path) -> dict[str, str]:
        """Write the histories of all users at the end of the log; return the file's checksum."""
        histories = Histories.at_the_end(self.log, self.targets.events, self.columns.history, self.histories.oldest)
        numbers, items = self.catalogues[USER].numbers, self.catalogues[ITEM].numbers
        latest = np.empty((len(numbers), self.columns.number - HISTORY), dtype=np.int32)
        for rows in _pieces(0, len(numbers), self.columns.number):
            latest[numbers[rows]] = histories.rows(rows, items, self._look_up)[0][:, HISTORY:]
        return {LATEST_FILE: _write(folder / LATEST_FILE, "<i4", latest)}

    def record(self) -> dict[str, Any]:
        """The contents of schema.json, except the fields and the checksums, after all is written."""
        sizes = {part: int(np.count_nonzero(self.targets.parts == number)) for number, part in enumerate(PARTS)}
        interactions = self._interactions()
        return {
            "rows": sizes,
            "labels": {part: asdict(Labels(size, 1.0, 1.0, 1.0, binary=True)) for part, size in sizes.items()},
            "interactions": interactions,
            **encoding_record(self.table.record, self.settings, self.limits, self.kinds, self.edges),
            "split": self.settings.split.model_dump() | self.targets.record(),
            "cut": cut_of(self.cut),
            "warnings": [
                f"{part} has {interactions['queries'][part]:,} queries, too few to judge by; give more rows"
                for part in JUDGING
                if interactions["queries"][part] < LEAST_ROWS
            ],
            "summaries": {name: self._summary(name).to_dict() for name in self.vocabularies},
        }

    def _interactions(self) -> dict[str, Any]:
        """The entry of schema.json that `pipeline.data.interactions.Interactions.load` reads, and counts for people."""
        log, counts = self.log, self.catalogues[ITEM].counts
        parts = {part: self.targets.rows(number) for number, part in enumerate(PARTS)}
        cold = {part: int(np.count_nonzero(counts[self._numbers(ITEM, rows)] == 0)) for part, rows in parts.items()}
        alone = {}
        if self.columns.history:
            for part, rows in parts.items():
                alone[part] = len(np.unique(self.targets.queries[rows][self.histories.empty(rows)]))
        return {
            "history": self.columns.history,
            "oldest": self.histories.oldest,
            "keys": dict(self.about["keys"]),
            "users": len(self.catalogues[USER]),
            "items": len(counts),
            "queries": {part: int(self.targets.queries[rows][-1]) + 1 for part, rows in parts.items()},
            "events": [] if log.events is None else sorted(pc.unique(plain(log.events)).drop_null().to_pylist()),
            "given": log.test is not None,
            "cold": {"items": int(np.count_nonzero(counts == 0)), "rows": cold},
            "repeats": {part: int(np.count_nonzero(self.targets.repeats[rows])) for part, rows in parts.items()},
            "empty_histories": alone,
            "left_out": {
                "duplicates": self.targets.duplicates,
                "in_histories_only": int(np.count_nonzero(~log.targets)),
            },
        }

    def _summary(self, name: str) -> Summary:
        """The summary of a field, with warnings about those that describe users and items and do not identify them."""
        vocabulary, role = self.vocabularies[name], self.roles[name]
        train = self.targets.rows(TRAIN)
        rows = train.stop - train.start
        unknown: dict[str, float] = {}
        for part in JUDGING:
            if role == EVENT:
                met = self.met[name][part]
                unknown[part] = met.unknown / max(1, met.values)
            else:
                numbers = self._numbers(role, self.targets.rows(PARTS.index(part)))
                unknown[part] = float(np.mean(self.slots[name][numbers] == UNKNOWN))
        if role == EVENT:
            rows = self.met[name]["train"].values
        summary = Summary(
            vocabulary.kind,
            vocabulary.distinct,
            len(vocabulary.values),
            unknown,
            vocabulary.largest / max(1, rows),
            None,
        )
        if role == EVENT or name in self.about["keys"].values():
            return summary
        sample = pa.nulls(0) if vocabulary.kind == BAG else plain(self._values(name, slice(0, min(rows, SAMPLE))))
        quantiles = self.settings.numeric == "quantiles"
        return replace(summary, warnings=warnings(summary, rows, vocabulary.missing, sample, quantiles, None))


def _pieces(start: int, stop: int, columns: int) -> Iterator[slice]:
    """Rows ``start`` to ``stop`` in pieces that fit in memory with so many columns."""
    size = max(1, CHUNK_CELLS // columns)
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _write(path: Path, dtype: str, array: np.ndarray) -> str:
    """Write an array; return the checksum of its file."""
    with ArrayFile(path, dtype, array.shape) as file:
        file.append(array)
    return file.sha256


def figures(interactions: Mapping[str, Any]) -> dict[str, float]:
    """The counts of a record of interactions, each by a name, for tracking.

    Args:
        interactions: the entry of schema.json.
    """
    made = {name: interactions[name] for name in ("users", "items", "history")}
    made |= {f"left_out/{why}": count for why, count in interactions["left_out"].items()}
    made["cold/items"] = interactions["cold"]["items"]
    by_part = {"cold": interactions["cold"]["rows"]}
    by_part |= {name: interactions[name] for name in ("queries", "repeats", "empty_histories")}
    return made | {f"{name}/{part}": count for name, counts in by_part.items() for part, count in counts.items()}


def sentences(interactions: Mapping[str, Any], rows: Mapping[str, int]) -> list[str]:
    """What ``encode`` says of interactions.

    Args:
        interactions: the entry of schema.json.
        rows: of each part.
    """
    cold, queries, out = interactions["cold"], interactions["queries"], interactions["left_out"]
    shares = ", ".join(f"{part} {cold['rows'][part] / rows[part]:.1%}" for part in JUDGING)
    repeats = ", ".join(f"{part} {interactions['repeats'][part] / rows[part]:.1%}" for part in JUDGING)
    made = [
        f"{interactions['users']:,} users, {interactions['items']:,} items, "
        f"queries: {', '.join(f'{part} {count:,}' for part, count in queries.items())}",
        f"{cold['items']:,} items have no training row; rows with such an item: {shares}",
        f"rows that repeat an earlier interaction of the user: {repeats}",
    ]
    if (empty := interactions["empty_histories"]) and interactions["history"]:
        none = ", ".join(f"{part} {empty[part] / queries[part]:.1%}" for part in JUDGING)
        made.append(f"histories of {interactions['history']} interactions; queries without any: {none}")
    if out["duplicates"]:
        made.append(f"left out {out['duplicates']:,} rows, because their query has the same item already")
    if out["in_histories_only"]:
        made.append(f"{out['in_histories_only']:,} rows of other types only stand in histories")
    return made
