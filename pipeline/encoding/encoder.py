"""What the engines that encode a raw table have in common: what is learned, checked and recorded."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.data.schema import Schema
from pipeline.data.split import PARTS, Part, Split
from pipeline.encoding.buckets import quantile_edges
from pipeline.encoding.fields import JUDGING, Summary, part_warnings, warnings
from pipeline.encoding.parts import PartLabels, Parts, Times
from pipeline.encoding.record import Limits, encoding_record
from pipeline.encoding.tally import Tally
from pipeline.encoding.vocabulary import Counts, Vocabulary, cut_of
from pipeline.sources.source import BAG, LABEL, NUMERIC, ORACLE, TIME, BadData
from pipeline.workflow.params import Encode


class Table(Protocol):
    """What is known of a raw table."""

    @property
    def record(self) -> Mapping[str, Any]:
        """The contents of its raw.json."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """Kind of every field."""

    @property
    def place(self) -> object:
        """The table in messages."""

    @property
    def label_dtype(self) -> str:
        """Of its labels when they are encoded, in NumPy's notation."""


class Encoder(abc.ABC):
    """The encoding of one raw table by one engine; its public steps are called in the order of their definitions.

    All that is decided is decided here, or by `Parts`, `Vocabulary` and `quantile_edges`. An engine reads rows and
    carries counts, so that any two engines write the same bytes.

    Args:
        table: to encode.
        settings: see `pipeline.encoding.encode.encode`.
    """

    def __init__(self, table: Table, settings: Encode) -> None:
        _check_settings(table, settings)
        self.table, self.settings = table, settings
        self.limits = Limits.of(settings, table.record["defaults"])
        self.parts = Parts(settings.split.by, settings.split.shares, settings.seed, self.times())
        self.edges: dict[str, np.ndarray] = {}
        numeric = [name for name, kind in table.kinds.items() if kind == NUMERIC]
        if settings.numeric == "quantiles" and numeric:
            self.edges = quantile_edges(self.training_rows(numeric), numeric, settings.buckets, settings.seed)
        self.vocabularies = {
            name: Vocabulary(name, kind, self.edges.get(name), self.limits.max_bag)
            for name, kind in table.kinds.items()
        }
        self.samples: dict[str, pa.Array] = {}  # raw values of the first training rows, by field
        # By name of a bag, the number of known values beyond max_bag, and of rows with such values.
        self.cut = {name: Counts() for name, kind in table.kinds.items() if kind == BAG}
        self.labels = PartLabels()
        self.plain = {"labels": LABEL} | ({"oracle": ORACLE} if table.record[ORACLE] else {})  # file: column

    @abc.abstractmethod
    def times(self) -> Times:
        """The times of all rows, for a split by time."""

    @abc.abstractmethod
    def training_rows(self, names: Sequence[str]) -> Iterable[tuple[np.ndarray, Mapping[str, pa.Array]]]:
        """Numbers of training rows and their columns, in batches: those that `quantile_edges` may take, or more."""

    @abc.abstractmethod
    def split_rows(self) -> None:
        """Find the training rows, and summarise the labels of each part; see `check_parts`."""

    @abc.abstractmethod
    def different_times(self) -> int:
        """The number of different times."""

    @abc.abstractmethod
    def learn(self, path: Path) -> Schema:
        """Learn and write the vocabularies."""

    @abc.abstractmethod
    def write(self, folder: Path, schema: Schema) -> dict[str, str]:
        """Look up and write all rows; return the files' checksums."""

    def check_parts(self) -> None:
        """Check the labels of each part.

        Raises:
            BadData: if a part would be empty, or have one of two labels only.
        """
        for empty in self.labels.empty():
            remedy = f"raise encode.split.{empty} in params.yaml, or give more rows"
            if self.settings.split.by == "time":
                times = self.different_times()
                remedy = (
                    f"rows of the same time stay together, and the number of different times is {times:,}: give rows "
                    "of more times, or set encode.split.by to random in params.yaml"
                )
            raise BadData(f"no row would go to part {empty!r}", file=self.table.place, remedy=remedy)
        labels = self.labels.record()
        self.binary = all(about.binary for about in labels.values())
        for name, about in labels.items():
            if self.binary and about.least == about.most:
                raise BadData(
                    f"all {about.rows:,} rows of part {name!r} have the label {about.least:g}, and nothing can be "
                    "learned or judged without the other",
                    file=self.table.place,
                    remedy=f"raise encode.split.{name} in params.yaml, or give more rows",
                )

    def arrays(self, schema: Schema) -> Iterator[tuple[str, Part, str, str, tuple[int, ...]]]:
        """Of each array to write: its file, its part, what it holds, its dtype and its shape."""
        about = {"ids": ("<i4", (schema.num_slots,)), "labels": (self.table.label_dtype, ()), "oracle": ("<f8", ())}
        for part, rows in zip(PARTS, self.labels.rows, strict=True):
            for name in ("ids", *self.plain):
                dtype, width = about[name]
                yield f"{part}/{name}.npy", part, name, dtype, (int(rows), *width)

    def start_tally(self, schema: Schema) -> None:
        """Start to count what the rows say of each field, before they are written."""
        self.tally = Tally(schema, self.binary, self._alike())

    def _alike(self) -> Iterator[tuple[int, int]]:
        """Numbers of fields that have the same known values, each as often as in the other field."""
        firsts: dict[tuple[int, bytes], list[int]] = {}  # by slots and counts, fields whose values differ
        vocabularies = [*self.vocabularies.values()]
        for number, own in enumerate(vocabularies):
            if len(own.values) < 2:
                continue
            same = firsts.setdefault((own.width, hashlib.sha256(own.counts.tobytes()).digest()), [])
            for first in same:
                if own.values.equals(vocabularies[first].values):
                    yield first, number
                    break
            else:
                same.append(number)

    def record(self) -> dict[str, Any]:
        """The contents of schema.json, except the fields and the checksums."""
        labels = self.labels.record()
        return {
            "rows": {part: about.rows for part, about in labels.items()},
            "labels": {part: asdict(about) for part, about in labels.items()},
            **encoding_record(self.table.record, self.settings, self.limits, self.table.kinds, self.edges),
            "split": {**self.settings.split.model_dump(), **self.parts.record()},
            "cut": cut_of(self.cut),
            "warnings": part_warnings(labels),
        }

    def summaries(self, folder: Path, schema: Schema) -> dict[str, dict[str, Any]]:
        """The `Summary` of each field, by name, after the rows are written; of these only ``val`` is read."""
        labels, tally = self.labels.record(), self.tally
        aucs: list[float | None] = [None] * len(schema)
        if self.binary:
            counts = [vocabulary.counts for vocabulary in self.vocabularies.values()]
            aucs = [*tally.aucs(schema, counts, labels["train"].mean, Split.load(folder, "val"))]
        twins = {schema.names[copy]: schema.names[first] for first, copy in tally.copies}
        made = {}
        for i, (name, vocabulary) in enumerate(self.vocabularies.items()):
            shares = tally.unknown[i] / self.labels.rows
            summary = Summary(
                vocabulary.kind,
                vocabulary.distinct,
                len(vocabulary.values),
                {part: float(shares[PARTS.index(part)]) for part in JUDGING},
                vocabulary.largest / labels["train"].rows,
                aucs[i],
            )
            told = warnings(
                summary,
                labels["train"].rows,
                vocabulary.missing,
                self.samples[name],
                self.settings.numeric == "quantiles",
                twins.get(name),
            )
            made[name] = replace(summary, warnings=told).to_dict()
        return made


def _check_settings(table: Table, settings: Encode) -> None:
    """Raise BadData if the settings do not suit the rows."""
    if settings.split.by == "given" or (settings.split.by == "time" and not table.record[TIME]):
        lack = "time to split by" if settings.split.by == "time" else "test rows that its publisher chose"
        raise BadData(f"has no {lack}", file=table.place, remedy="set encode.split.by to random in params.yaml")
    if settings.history:
        remedy = "set encode.history to null in params.yaml"
        raise BadData("has labels, and only interactions have a history", file=table.place, remedy=remedy)
