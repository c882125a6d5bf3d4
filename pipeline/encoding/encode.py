"""Encodes the raw table as feature ids, in two passes: count the values of the training rows, then look all values up.

All that is learned from data (the known values, their order, the edges of buckets) is learned from the rows of part
``train``. The result is the same, byte for byte, for any size of the batches.

Threads share the work: fields in the first pass, row groups in the second. Memory grows by only one bit per row, and
does not grow with values that are too rare for an id.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.encoded import SCHEMA_FILE, VOCABULARY_FILE
from pipeline.data.schema import Field, Schema
from pipeline.data.split import PARTS
from pipeline.encoding.arrays import ArrayFile
from pipeline.encoding.buckets import quantile_edges
from pipeline.encoding.parts import TRAIN, PartLabels, Parts
from pipeline.encoding.raw_table import LABEL_DTYPES, RawTable
from pipeline.encoding.threads import in_order, progress_bar, thread_pool
from pipeline.encoding.vocabulary import Vocabulary, write_vocabulary
from pipeline.sources.raw import GROUP_ROWS
from pipeline.sources.source import LABEL, ORACLE, TIME, BadData
from pipeline.workflow.outputs import checksum, read_json, write_json
from pipeline.workflow.params import Encode

MIN_COUNT = 2  # the default if neither the settings nor the data set have a value; MAX_BAG likewise
MAX_BAG = 8


def encode(raw: Path, folder: Path, settings: Encode, batch_rows: int = GROUP_ROWS) -> dict[str, Any]:
    """Write the encoded parts, their vocabulary and their schema.

    Args:
        raw: folder with the table.parquet and raw.json of ``ingest``.
        folder: created. For every part with N rows in S slots, it has

            * ``<part>/ids.npy`` (N, S) int32, ``<part>/labels.npy`` (N,), uint8 for raw labels of uint8 and float32 for
              float64, and ``<part>/oracle.npy`` (N,) float64 if the raw table has one; rows in their raw order;

            and for all parts together

            * ``vocabulary.parquet``: feature (name of the field), value (as text, null for missing), count (in training
              rows), id;
            * ``schema.json``: fields and widths for `Schema`, labels for `Encoded`, and a record of the encoding.

        settings: section ``encode`` of params.yaml.
        batch_rows: most rows of a batch; it does not change the result.

    Returns:
        The contents of schema.json.

    Raises:
        ValueError: if the settings do not suit the data; `BadData` names the part and the remedy.
    """
    table = RawTable(raw, batch_rows)
    if settings.split.by == "time" and not table.record[TIME]:
        raise BadData("has no time to split by", file=raw, remedy="set encode.split.by to random in params.yaml")
    with thread_pool() as threads:
        encoder = _Encoder(table, settings, threads)
        encoder.split_rows()
        folder.mkdir(parents=True)
        schema = encoder.learn(folder / VOCABULARY_FILE)
        checksums = encoder.write(folder, schema)
    checksums[VOCABULARY_FILE] = checksum(folder / VOCABULARY_FILE)
    record = {**schema.to_dict(), "sha256": checksums, **encoder.record()}
    write_json(folder / SCHEMA_FILE, record)
    return record


class _Encoder:
    """The encoding of one raw table; its public steps are called in the order of their definitions.

    Args:
        table: to encode.
        settings: see `encode`.
        threads: share the work.
    """

    def __init__(self, table: RawTable, settings: Encode, threads: ThreadPoolExecutor) -> None:
        self.table, self.settings, self.threads = table, settings, threads
        defaults = table.record["defaults"]
        self.min_count: int = settings.min_count or defaults.get("min_count", MIN_COUNT)
        self.max_bag: int = settings.max_bag or defaults.get("max_bag", MAX_BAG)
        self.parts = Parts(settings.split.by, settings.split.shares, settings.seed, table.scan)
        self.edges: dict[str, np.ndarray] = {}
        if settings.numeric == "quantiles":
            self.edges = quantile_edges(table.scan, self.parts, table.kinds, settings.buckets, settings.seed)
        self.vocabularies = {
            name: Vocabulary(name, kind, self.edges.get(name), self.max_bag) for name, kind in table.kinds.items()
        }
        self.labels = PartLabels()
        self.train: list[np.ndarray] = []  # for each batch, one bit per row: whether it is a training row
        self.plain = {"labels": LABEL} | ({"oracle": ORACLE} if table.record[ORACLE] else {})  # file: column

    def split_rows(self) -> None:
        """Find the training rows, and summarise the labels of each part.

        Raises:
            BadData: if a part would be empty.
        """
        for first, batch in self.table.scan([LABEL, *self.parts.columns], "(splitting)"):
            part = self.parts(first, batch)
            self.labels.add(part, batch[LABEL].to_numpy().astype(self.table.label_dtype))
            self.train.append(np.packbits(part == TRAIN))
        for empty in self.labels.empty():
            raise BadData(
                f"no row would go to part {empty!r}",
                file=self.table.path,
                remedy=f"raise encode.split.{empty} in params.yaml, or give more rows",
            )

    def learn(self, path: Path) -> Schema:
        """The first pass: learn and write the vocabularies, field by field."""
        vocabularies = self.vocabularies.values()
        with progress_bar("(counting)", len(vocabularies), " fields") as progress:
            known = in_order(self.threads, self._learn, vocabularies, progress)
            return write_vocabulary(zip(vocabularies, known, strict=True), path)

    def _learn(self, vocabulary: Vocabulary) -> pa.Table:
        def pieces() -> Iterator[tuple[pa.Array, np.ndarray]]:
            for (_, batch), bits in zip(self.table.batches([vocabulary.name]), self.train, strict=True):
                yield batch[vocabulary.name], np.unpackbits(bits, count=len(batch)).view(bool)

        return vocabulary.learn(pieces, self.min_count)

    def write(self, folder: Path, schema: Schema) -> dict[str, str]:
        """The second pass: look up and write all rows, row group by row group; return the files' checksums."""
        arrays = {"ids": ("<i4", (schema.num_slots,)), "labels": (self.table.label_dtype, ()), "oracle": ("<f8", ())}
        with contextlib.ExitStack() as stack:
            files = {}
            for part, rows in zip(PARTS, self.labels.rows, strict=True):
                for name in ("ids", *self.plain):
                    dtype, width = arrays[name]
                    file = ArrayFile(folder / part / f"{name}.npy", dtype, (int(rows), *width))
                    files[f"{part}/{name}.npy"] = stack.enter_context(file)
            with progress_bar("(writing)", self.table.groups, " row groups") as progress:
                encoded = functools.partial(self._encoded, schema)
                for pieces in in_order(self.threads, encoded, range(self.table.groups), progress):
                    for name, array in pieces:
                        files[name].append(array)
        return {name: file.sha256 for name, file in files.items()}

    def _encoded(self, schema: Schema, group: int) -> list[tuple[str, np.ndarray]]:
        """Pairs (name of a file, rows to append) of one row group."""
        slots = self._looked_up(schema, group)
        pieces, start = [], 0
        for first, batch in self.table.batches([*self.plain.values(), *self.parts.columns], group):
            part = self.parts(first, batch)
            for number, place in enumerate(PARTS):
                rows = np.flatnonzero(part == number)
                pieces.append((f"{place}/ids.npy", np.ascontiguousarray(slots.take(start + rows, axis=1).T)))
                for name, column in self.plain.items():
                    pieces.append((f"{place}/{name}.npy", batch[column].to_numpy().take(rows)))
            start += len(batch)
        return pieces

    def _looked_up(self, schema: Schema, group: int) -> np.ndarray:
        """(S, n) int32: the ids of one row group. Columns are read one by one, so that each stays in the cache."""
        slots = np.empty((schema.num_slots, self.table.sizes[group]), dtype=np.int32)
        start = 0
        for field in schema.fields:
            end = 0
            for _, batch in self.table.batches([field.name], group):
                free = slots[start : start + field.width, end : end + len(batch)]
                self.vocabularies[field.name].look_up(batch[field.name], free)
                end += len(batch)
            start += field.width
        return slots

    def record(self) -> dict[str, Any]:
        """The contents of schema.json, except the fields and the checksums."""
        labels = self.labels.record()
        return {
            "rows": {part: about.rows for part, about in labels.items()},
            "labels": {part: asdict(about) for part, about in labels.items()},
            "raw_sha256": self.table.record["sha256"],
            "dataset": self.table.record.get("dataset"),
            "options": self.table.record.get("options", {}),
            "kinds": self.table.kinds,
            "split": {**self.settings.split.model_dump(), **self.parts.record()},
            "seed": self.settings.seed,
            "min_count": self.min_count,
            "max_bag": self.max_bag,
            "numeric": self.settings.numeric,
            "edges": {name: list(map(float, edges)) for name, edges in self.edges.items()},
            "facts": self.table.record["facts"],
        }


def as_stream(raw: Path, max_bag: int | None = None) -> tuple[Schema, np.ndarray, np.ndarray]:
    """The rows of the raw table in the order of time, with ids numbered by the first appearance of their values.

    So no id depends on later rows. Rows without a time, and rows of the same time, keep their raw order. Numbers become
    categories by `log_square`, which learns nothing from data.

    Args:
        raw: folder with the table.parquet and raw.json of ``ingest``. The whole table is held in memory.
        max_bag: slots of a bag; None for the data set's default.

    Returns:
        schema; ids (n, S) int32, where `UNKNOWN` means an empty bag; labels (n,), uint8 for raw labels of uint8 and
        float32 for float64.
    """
    record = read_json(raw / "raw.json")
    max_bag = max_bag or record["defaults"].get("max_bag", MAX_BAG)
    table = pq.read_table(raw / "table.parquet")
    order = np.argsort(table[TIME].to_numpy(), kind="stable") if record[TIME] else np.arange(len(table))
    fields, slots = [], []
    for name, kind in record["fields"].items():
        vocabulary = Vocabulary(name, kind, None, max_bag)
        ids = np.empty((vocabulary.width, len(table)), dtype=np.int32)
        vocabulary.appear(table[name].combine_chunks().take(pa.array(order)), ids)
        fields.append(Field(name, int(ids.max()) + 1, vocabulary.width))
        slots.append(ids)
    labels = table[LABEL].to_numpy()[order].astype(LABEL_DTYPES[table[LABEL].type])
    return Schema(tuple(fields)), np.ascontiguousarray(np.concatenate(slots).T), labels
