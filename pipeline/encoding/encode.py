"""Encodes the raw table as feature ids, in two passes: count the values of the training rows, then look all values up.

All that is learned from data (the known values, their order, the edges of buckets) is learned from the rows of part
``train``. The result is the same, byte for byte, for any size of the batches.

Threads share the work: fields in the first pass, row groups in the second. Memory grows by only one bit per row, and
does not grow with values that are too rare for an id.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.encoded import SCHEMA_FILE, VOCABULARY_FILE
from pipeline.data.schema import Field, Schema
from pipeline.data.split import PARTS
from pipeline.encoding.arrays import ArrayFile
from pipeline.encoding.encoder import Encoder
from pipeline.encoding.fields import FIELDS_FILE, SAMPLE, write_table
from pipeline.encoding.interactions import encode_interactions
from pipeline.encoding.parts import TRAIN, ScannedTimes
from pipeline.encoding.raw_table import INTERACTIONS, LABEL_DTYPES, RawTable, checked_table, plain, raw_record
from pipeline.encoding.record import MAX_BAG
from pipeline.encoding.threads import in_order, progress_bar, thread_pool
from pipeline.encoding.vocabulary import Counts, Cut, Vocabulary, cut_of, write_vocabulary
from pipeline.sources.raw import GROUP_ROWS
from pipeline.sources.source import BAG, LABEL, TIME, BadData
from pipeline.workflow.outputs import checksum, write_json
from pipeline.workflow.params import Encode


def encode(raw: Path, folder: Path, settings: Encode, batch_rows: int = GROUP_ROWS) -> dict[str, Any]:
    """Write the encoded parts, their vocabulary and their schema.

    Interactions are encoded by `pipeline.encoding.interactions.encode_interactions`.

    Args:
        raw: folder with the table.parquet and raw.json of ``ingest``.
        folder: created. For every part with N rows in S slots, it has

            * ``<part>/ids.npy`` (N, S) int32, ``<part>/labels.npy`` (N,), uint8 for raw labels of uint8 and float32 for
              float64, and ``<part>/oracle.npy`` (N,) float64 if the raw table has one; rows in their raw order;

            and for all parts together

            * ``vocabulary.parquet``: feature (name of the field), value (as text, null for missing), count (in training
              rows), id;
            * ``schema.json``: fields and widths for `Schema`, labels for `Encoded`, the `Summary` of each field,
              warnings about parts, and a record of the encoding;
            * ``fields.csv``: the summaries as a table.

        settings: section ``encode`` of params.yaml.
        batch_rows: most rows of a batch; it does not change the result.

    Returns:
        The contents of schema.json.

    Raises:
        ValueError: if the settings do not suit the data; `BadData` names the part and the remedy.
    """
    if raw_record(raw).get(INTERACTIONS) is not None:
        if settings.engine == "spark":
            remedy = "set encode.engine to local in params.yaml"
            raise BadData("has interactions, and Spark encodes rows with labels only", file=raw, remedy=remedy)
        table = RawTable(raw, batch_rows)
        return encode_interactions(table, table.record[INTERACTIONS], folder, settings)
    with _encoder(raw, settings, batch_rows) as encoder:
        encoder.split_rows()
        folder.mkdir(parents=True)
        schema = encoder.learn(folder / VOCABULARY_FILE)
        checksums = encoder.write(folder, schema)
    checksums[VOCABULARY_FILE] = checksum(folder / VOCABULARY_FILE)
    record = {**schema.to_dict(), "sha256": checksums, **encoder.record()}
    record["summaries"] = encoder.summaries(folder, schema)
    write_table(record["summaries"], folder / FIELDS_FILE)
    write_json(folder / SCHEMA_FILE, record)
    return record


@contextlib.contextmanager
def _encoder(raw: Path, settings: Encode, batch_rows: int) -> Iterator[Encoder]:
    """The encoder of the engine that the settings name."""
    if settings.engine == "spark":
        from pipeline.encoding.spark.encoder import spark_encoder

        with spark_encoder(raw, settings) as encoder:
            yield encoder
    else:
        with thread_pool() as threads:
            yield LocalEncoder(RawTable(raw, batch_rows), settings, threads)


class LocalEncoder(Encoder):
    """Encodes on this machine.

    Args:
        table: to encode.
        settings: see `encode`.
        threads: share the work.
    """

    table: RawTable

    def __init__(self, table: RawTable, settings: Encode, threads: ThreadPoolExecutor) -> None:
        self.threads = threads
        self.train: list[np.ndarray] = []  # for each batch, one bit per row: whether it is a training row
        super().__init__(table, settings)

    def times(self) -> ScannedTimes:
        return ScannedTimes(self.table.scan)

    def different_times(self) -> int:
        return len(np.unique(self.table.column(TIME)))

    def training_rows(self, names: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        for first, batch in self.table.scan([*names, *self.parts.columns], "(quantiles)"):
            rows = np.flatnonzero(self.parts(first, batch) == TRAIN)
            yield first + rows, batch.take(pa.array(rows))

    def split_rows(self) -> None:
        for first, batch in self.table.scan([LABEL, *self.parts.columns], "(splitting)"):
            part = self.parts(first, batch)
            self.labels.add(part, batch[LABEL].to_numpy().astype(self.table.label_dtype))
            self.train.append(np.packbits(part == TRAIN))
        self.check_parts()

    def learn(self, path: Path) -> Schema:
        """The first pass: learn and write the vocabularies, field by field."""
        vocabularies = self.vocabularies.values()
        with progress_bar("(counting)", len(vocabularies), " fields") as progress:
            known = in_order(self.threads, self._learn, vocabularies, progress)
            return write_vocabulary(zip(vocabularies, known, strict=True), path)

    def _learn(self, vocabulary: Vocabulary) -> pa.Table:
        sample: list[pa.Array] = []

        def pieces() -> Iterator[tuple[pa.Array, np.ndarray]]:
            wanted = SAMPLE - sum(map(len, sample))
            for (_, batch), bits in zip(self.table.batches([vocabulary.name]), self.train, strict=True):
                column, train = batch[vocabulary.name], np.unpackbits(bits, count=len(batch)).view(bool)
                if wanted and vocabulary.kind != BAG:
                    sample.append(plain(column.take(pa.array(np.flatnonzero(train)[:wanted]))))
                    wanted -= len(sample[-1])
                yield column, train

        known = vocabulary.learn(pieces, self.limits.min_count)
        self.samples[vocabulary.name] = pa.concat_arrays(sample) if sample else pa.nulls(0)
        return known

    def write(self, folder: Path, schema: Schema) -> dict[str, str]:
        """The second pass: look up and write all rows, row group by row group; return the files' checksums."""
        self.start_tally(schema)
        with contextlib.ExitStack() as stack:
            files = {}
            for file, _, _, dtype, shape in self.arrays(schema):
                files[file] = stack.enter_context(ArrayFile(folder / file, dtype, shape))
            with progress_bar("(writing)", self.table.groups, " row groups") as progress:
                encoded = functools.partial(self._encoded, schema)
                for pieces, cut in in_order(self.threads, encoded, range(self.table.groups), progress):
                    for name, counts in cut.items():
                        self.cut[name] += counts
                    for name, array in pieces:
                        files[name].append(array)
        return {name: file.sha256 for name, file in files.items()}

    def _encoded(self, schema: Schema, group: int) -> tuple[list[tuple[str, np.ndarray]], dict[str, Counts]]:
        """Of one row group, pairs (name of a file, rows to append), and what was cut from its bags."""
        slots, cut = self._looked_up(schema, group)
        pieces, start = [], 0
        for first, batch in self.table.batches([*self.plain.values(), *self.parts.columns], group):
            part = self.parts(first, batch)
            self.tally.add(part, batch[LABEL].to_numpy(), slots[:, start : start + len(batch)])
            for number, place in enumerate(PARTS):
                rows = np.flatnonzero(part == number)
                pieces.append((f"{place}/ids.npy", np.ascontiguousarray(slots.take(start + rows, axis=1).T)))
                for name, column in self.plain.items():
                    pieces.append((f"{place}/{name}.npy", batch[column].to_numpy().take(rows)))
            start += len(batch)
        return pieces, cut

    def _looked_up(self, schema: Schema, group: int) -> tuple[np.ndarray, dict[str, Counts]]:
        """(S, n) int32: the ids of one row group; and what was cut from its bags.

        Columns are read one by one, so that each stays in the cache.
        """
        cut = dict.fromkeys(self.cut, Counts())
        slots = np.empty((schema.num_slots, self.table.sizes[group]), dtype=np.int32)
        start = 0
        for field in schema.fields:
            end = 0
            for _, batch in self.table.batches([field.name], group):
                free = slots[start : start + field.width, end : end + len(batch)]
                counts = self.vocabularies[field.name].look_up(batch[field.name], free)
                if field.name in cut:
                    cut[field.name] += counts
                end += len(batch)
            start += field.width
        return slots, cut


def as_stream(raw: Path, max_bag: int | None = None) -> tuple[Schema, np.ndarray, np.ndarray, Cut]:
    """The rows of the raw table in the order of time, with ids numbered by the first appearance of their values.

    So no id depends on later rows. Rows without a time, and rows of the same time, keep their raw order. Numbers become
    categories by `log_square`, which learns nothing from data.

    Args:
        raw: folder with the table.parquet and raw.json of ``ingest``. The whole table is held in memory.
        max_bag: slots of a bag; None for the data set's default.

    Raises:
        BadData: if the rows have no labels.

    Returns:
        schema; ids (n, S) int32, where `UNKNOWN` means an empty bag; labels (n,), uint8 for raw labels of uint8 and
        float32 for float64; what was cut from the bags.
    """
    record = raw_record(raw)
    if record.get(INTERACTIONS) is not None:
        remedy = "choose a data set with labels as dataset.name in params.yaml"
        raise BadData("has interactions, and a stream needs labels", file=raw, remedy=remedy)
    table = pq.read_table(checked_table(raw, record))
    max_bag = max_bag or record["defaults"].get("max_bag", MAX_BAG)
    order = np.argsort(table[TIME].to_numpy(), kind="stable") if record[TIME] else np.arange(len(table))
    fields, slots, cut = [], [], {}
    for name, kind in record["fields"].items():
        vocabulary = Vocabulary(name, kind, None, max_bag)
        ids = np.empty((vocabulary.width, len(table)), dtype=np.int32)
        counts = vocabulary.appear(table[name].combine_chunks().take(pa.array(order)), ids)
        if kind == BAG:
            cut[name] = counts
        fields.append(Field(name, int(ids.max()) + 1, vocabulary.width))
        slots.append(ids)
    labels = table[LABEL].to_numpy()[order].astype(LABEL_DTYPES[table[LABEL].type])
    return Schema(tuple(fields)), np.ascontiguousarray(np.concatenate(slots).T), labels, cut_of(cut)
