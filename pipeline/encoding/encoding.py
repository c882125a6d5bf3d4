"""What `encode` has learned, read back: raw values to ids, by the same functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.encoded import SCHEMA_FILE, VOCABULARY_FILE
from pipeline.data.schema import Schema
from pipeline.encoding.vocabulary import Counts, Vocabulary, read_vocabulary
from pipeline.sources.source import CATEGORICAL, NUMERIC
from pipeline.workflow.outputs import checksum, read_json

NEEDED = ("sha256", "kinds", "max_bag", "edges", "dataset", "options")  # keys of schema.json besides the fields


@dataclass(frozen=True)
class Encoding:
    """The vocabularies and the buckets of a data set.

    Args:
        schema: of the ids.
        vocabularies: of every field, by name.
        record: the contents of schema.json.
    """

    schema: Schema
    vocabularies: Mapping[str, Vocabulary]
    record: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Encoding:
        """The encoding in a folder with the ``schema.json`` and the ``vocabulary.parquet`` that `encode` wrote.

        Raises:
            ValueError: if an earlier version wrote schema.json, or the vocabulary is not the one that it names.
            FileNotFoundError: if a file is missing.
        """
        schema_file, vocabulary_file = Path(folder) / SCHEMA_FILE, Path(folder) / VOCABULARY_FILE
        record = read_json(schema_file)
        schema = Schema.of(record, schema_file)
        missing = [key for key in NEEDED if key not in record]
        if missing or VOCABULARY_FILE not in record["sha256"]:
            raise ValueError(
                f"{schema_file}: an earlier version wrote it, without what is needed to encode new rows; run "
                "`dvc repro`, which writes it and its models again"
            )
        if checksum(vocabulary_file) != record["sha256"][VOCABULARY_FILE]:
            raise ValueError(f"{vocabulary_file}: is not the vocabulary that {SCHEMA_FILE} beside it names; copy both")
        known = read_vocabulary(vocabulary_file)
        vocabularies = {}
        for name, kind in record["kinds"].items():
            edges = record["edges"].get(name)
            vocabulary = Vocabulary(name, kind, None if edges is None else np.array(edges), record["max_bag"])
            values = known.get(name, pa.nulls(0, pa.string()))
            vocabulary.values = values.cast(pa.int64()) if kind == NUMERIC else values  # numbers of buckets
            vocabularies[name] = vocabulary
        return cls(schema, vocabularies, record)

    @property
    def kinds(self) -> Mapping[str, str]:
        """Kind of every field, by name; see `pipeline.sources.source.KINDS`."""
        kinds: Mapping[str, str] = self.record["kinds"]
        return kinds

    def frequent(self, name: str) -> list[str]:
        """The most frequent values, at most two, of a field that is not numeric."""
        values: list[str] = self.vocabularies[name].values.drop_null().slice(0, 2).to_pylist()
        return values

    def ids(self, batch: pa.RecordBatch) -> tuple[np.ndarray, dict[str, Counts]]:
        """The ids of raw rows.

        Args:
            batch: n rows with a column of each field, of the types that `pipeline.sources.source.Source` allows.

        Returns:
            Ids (n, S) int32; what each field met, by name.
        """
        return self.ids_of(self.schema, {name: batch[name] for name in self.schema.names})

    def ids_of(self, schema: Schema, columns: Mapping[str, pa.Array]) -> tuple[np.ndarray, dict[str, Counts]]:
        """The ids of raw values.

        Args:
            schema: some of the fields.
            columns: (n,) values of each of them; see `ids`.

        Returns:
            Ids (n, S) int32; what each field met, by name.
        """
        slots = np.empty((schema.num_slots, len(columns[schema.names[0]])), dtype=np.int32)
        counts, start = {}, 0
        for field in schema.fields:
            counts[field.name] = self.look_up(field.name, columns[field.name], slots[start : start + field.width])
            start += field.width
        return np.ascontiguousarray(slots.T), counts

    def look_up(self, name: str, values: pa.Array, slots: np.ndarray) -> Counts:
        """Write the ids of a field's raw values (n,) to slots (k, n) int32."""
        if self.kinds[name] == CATEGORICAL:
            values = values.cast(pa.string())  # the vocabulary on disk holds texts
        return self.vocabularies[name].look_up(values, slots)
