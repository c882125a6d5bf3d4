"""The folder that ``encode`` writes: the schema, statistics of the labels, and the rows."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.interactions import (
    EVENT,
    HISTORY,
    ITEM,
    ITEMS_FILE,
    SHARED_FILES,
    USER,
    USERS_FILE,
    Interactions,
)
from pipeline.data.schema import PADDING, UNKNOWN, Schema
from pipeline.data.split import PARTS, Part, Split
from pipeline.workflow.outputs import broken, checksum, read_json

SCHEMA_FILE, VOCABULARY_FILE = "schema.json", "vocabulary.parquet"


@dataclass(frozen=True)
class Labels:
    """Statistics of the labels of one part.

    Args:
        rows: number of labels.
        mean, least, most: mean, minimum and maximum.
        binary: whether all labels are 0 or 1.
    """

    rows: int
    mean: float
    least: float
    most: float
    binary: bool


@dataclass(frozen=True)
class Encoded:
    """An encoded data set.

    Args:
        folder: of its files.
        schema: F fields.
        labels: statistics of the labels of every part.
        record: the contents of schema.json.
    """

    folder: Path
    schema: Schema
    labels: Mapping[Part, Labels]
    record: Mapping[str, Any] = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Encoded:
        """The data set in a folder. Only schema.json is read; `split` opens the rows.

        Raises:
            ValueError: naming the file, if ``encode`` did not write it in this form.
            FileNotFoundError: if there is no schema.json.
        """
        folder = Path(folder)
        file = folder / SCHEMA_FILE
        record = read_json(file)
        schema = Schema.of(record, file)
        try:
            labels = {part: Labels(**record["labels"][part]) for part in PARTS}
        except (KeyError, TypeError) as error:
            raise broken(file, f"does not describe the labels ({type(error).__name__}: {error})") from error
        return cls(folder, schema, labels, record)

    @property
    def raw_sha256(self) -> str:
        """Checksum of the raw table; it identifies the data set."""
        return str(self.record["raw_sha256"])

    @property
    def facts(self) -> Mapping[str, Any]:
        """The facts that the data set's plug states, e.g. planted ranks."""
        facts: Mapping[str, Any] = self.record.get("facts", {})
        return facts

    @functools.cached_property
    def interactions(self) -> Interactions | None:
        """Users and items, if the rows are interactions; None if they have labels.

        Raises:
            ValueError: naming a file that is broken, or not as ``encode`` wrote it.
        """
        record, sums = self.record.get("interactions"), self.record.get("sha256", {})
        if record is None:
            return None
        for name in SHARED_FILES:
            _check_sum(self.folder / name, sums.get(name))
        made = Interactions.load(self.folder, self.schema, record)
        for file, role, table in ((USERS_FILE, USER, made.users), (ITEMS_FILE, ITEM, made.items)):
            if (own := self.schema.of_role(role)) is not None:
                _check_ids(self.folder / file, table, own)
        return made

    def split(self, *parts: Part) -> Split:
        """The rows of the named parts, memory-mapped. A process reads each file once to check it.

        Raises:
            ValueError: naming a file that is broken, or not as ``encode`` wrote it.
        """
        rows = replace(Split.load(self.folder, *parts), interactions=self.interactions)
        sums = self.record.get("sha256", {})
        for part in parts:
            for file in (self.folder / part / "ids.npy", self.folder / part / "labels.npy"):
                about = file.stat()
                sha256 = sums.get(f"{part}/{file.name}")
                _check(file, about.st_mtime_ns, about.st_size, sha256, rows.interactions or self.schema)
        return rows

    def expected_labels(self, part: Part) -> Path | None:
        """The .npy file of the true expected labels, (n,) float64; None if the data are not planted."""
        file = self.folder / part / "oracle.npy"
        return file if file.is_file() else None


@functools.lru_cache
def _check(file: Path, changed: int, size: int, sha256: str | None, of: Schema | Interactions) -> None:
    """Check an array of ``encode``; not again while the file, its time of change and its size stay the same.

    Args:
        file: ids.npy or labels.npy of a part.
        changed, size: of the file.
        sha256: its checksum; None if it is not known.
        of: the fields of its ids, or what its interactions refer to.

    Raises:
        ValueError: naming the file.
    """
    _check_sum(file, sha256)
    if file.name == "ids.npy":
        ids = np.load(file, mmap_mode="r")
        if isinstance(of, Schema):
            _check_ids(file, ids, of)
        else:
            _check_numbers(file, ids, of)


def _check_sum(file: Path, sha256: str | None) -> None:
    if sha256 is not None and checksum(file) != sha256:
        raise broken(file, f"is not as encode wrote it: its checksum is not that of {SCHEMA_FILE}")


def _check_ids(file: Path, ids: np.ndarray, schema: Schema) -> None:
    """Check that ids (n, S) fit a schema."""
    if ids.shape[1] != schema.num_slots:
        raise broken(file, f"must have {schema.num_slots} slots, as {SCHEMA_FILE} says, got {ids.shape[1]}")
    least = np.where(schema.widths == 1, UNKNOWN, PADDING)[schema.slot_fields]
    wrong = (ids.min(0, initial=0) < least) | (ids.max(0, initial=0) >= schema.cardinalities[schema.slot_fields])
    if wrong.any():
        name = schema.names[schema.slot_fields[wrong.argmax()]]
        raise broken(file, f"has ids of field {name!r} that {SCHEMA_FILE} does not have")


def _check_numbers(file: Path, rows: np.ndarray, interactions: Interactions) -> None:
    """Check that rows of interactions (n, C) refer to users, items and ids that there are."""
    columns = interactions.columns
    if rows.shape[1] != columns.number:
        raise broken(file, f"must have {columns.number} columns, as {SCHEMA_FILE} says, got {rows.shape[1]}")
    most = [len(rows), len(interactions.users), len(interactions.items), 2]
    most += [len(interactions.items)] * columns.history
    events = interactions.schema.of_role(EVENT)
    most += [] if events is None else np.repeat(events.cardinalities, columns.history).tolist()
    least = np.full(columns.number, PADDING)
    least[:HISTORY] = 0
    if (rows.min(0, initial=0) < least).any() or (rows.max(0, initial=0) >= most).any():
        raise broken(file, f"has numbers of users or items, or ids, that {SCHEMA_FILE} does not have")
