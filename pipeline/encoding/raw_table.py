"""The raw table, read in batches."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encoding.threads import progress_bar
from pipeline.sources.source import BASKET, CATEGORICAL, EVENT, ITEM, KINDS, LABEL, ORACLE, TEST, TIME, USER, BadData
from pipeline.workflow.address import ADDRESS
from pipeline.workflow.outputs import broken, checksum, read_json

INTERACTIONS = "interactions"  # entry of raw.json of a log without labels
OPTIONAL = (EVENT, BASKET, TEST)  # columns of interactions besides the time; entries of that name say which there are
LABEL_DTYPES = {pa.uint8(): "|u1", pa.float64(): "<f4"}  # types of raw labels, and of encoded labels


def raw_record(folder: Path) -> dict[str, Any]:
    """The contents of the raw.json that ``ingest`` wrote to a folder; an address, if the rows are not in the folder.

    Raises:
        ValueError: if it is not a record of a raw table; the message names the file.
        FileNotFoundError: if it is missing.
    """
    record = read_json(folder / "raw.json")
    there = isinstance(record, dict) and ADDRESS in record
    types: dict[str, type] = {"rows": int, "sha256": str, "fields": dict, TIME: bool, ORACLE: bool}
    types |= {"defaults": dict, "facts": dict}
    if there:
        types = {ADDRESS: str, "sha256": str, "dataset": str, "options": dict}
    if not isinstance(record, dict) or any(not isinstance(record.get(key), kind) for key, kind in types.items()):
        raise broken(folder / "raw.json", f"is not a record with {', '.join(types)}")
    if there:
        return record
    if foreign := {name: kind for name, kind in record["fields"].items() if kind not in KINDS}:
        raise broken(folder / "raw.json", f"has fields of kinds other than {', '.join(KINDS)}: {foreign}")
    _check_interactions(folder / "raw.json", record)
    return record


def _check_interactions(file: Path, record: Mapping[str, Any]) -> None:
    """Raise a ValueError if the entry ``interactions`` of raw.json is not of its form."""
    about = record.get(INTERACTIONS)
    if about is None:
        return
    types: dict[str, Any] = {
        "roles": dict,
        "keys": dict,
        "targets": (list, type(None)),
        **dict.fromkeys(OPTIONAL, bool),
    }
    if not isinstance(about, dict) or any(not isinstance(about.get(key), kind) for key, kind in types.items()):
        raise broken(file, f"must describe its interactions by {', '.join(types)}")
    roles, keys = about["roles"], about["keys"]
    if set(roles) != set(record["fields"]) or not set(roles.values()) <= {USER, ITEM}:
        raise broken(file, "must say of every field whether it describes a user or an item")
    if set(keys) != {USER, ITEM} or any(roles.get(name) != role for role, name in keys.items()):
        raise broken(file, "must name a field that identifies a user, and one that identifies an item")


def checked_table(folder: Path, record: Mapping[str, Any]) -> Path:
    """The path of the table.parquet in a folder, which is as ``ingest`` wrote it.

    Raises:
        ValueError: if its checksum is not that of the record; as `BadData`, if the rows are not on this machine.
        FileNotFoundError: if it is missing.
    """
    if ADDRESS in record:
        remedy = "set dataset.path to a copy on this machine"
        raise BadData("is read by Spark alone, and only to encode it", file=record[ADDRESS], remedy=remedy)
    path = folder / "table.parquet"
    if checksum(path) != record["sha256"]:
        raise broken(path, "is not as ingest wrote it: its checksum is not that of raw.json")
    return path


class RawTable:
    """The table.parquet and raw.json of ``ingest``. Several threads may read them at once.

    Args:
        folder: of the two files.
        batch_rows: most rows of a batch; a batch does not cross row groups.

    Raises:
        ValueError: if a file is broken; the message names it.
        FileNotFoundError: if a file is missing.
    """

    def __init__(self, folder: Path, batch_rows: int) -> None:
        self.folder, self.batch_rows = folder, batch_rows
        self.record = raw_record(folder)
        self.path = checked_table(folder, self.record)
        self.kinds: dict[str, str] = self.record["fields"]
        self.metadata = pq.read_metadata(self.path)
        schema = self.metadata.schema.to_arrow_schema()
        self.interactions: dict[str, Any] | None = self.record.get(INTERACTIONS)
        optional = [name for name in OPTIONAL if self.interactions and self.interactions[name]]
        needed = {*self.kinds, *(optional if self.interactions else [LABEL])}
        if absent := sorted(needed - set(schema.names)):
            raise broken(folder / "raw.json", f"names columns that {self.path.name} does not have: {absent}")
        self.label_dtype = LABEL_DTYPES[schema.field(LABEL).type] if LABEL in schema.names else ""
        self.groups = self.metadata.num_row_groups
        self.sizes = [self.metadata.row_group(group).num_rows for group in range(self.groups)]
        self.firsts = [0, *itertools.accumulate(self.sizes)]
        self.coded = [name for name, kind in self.kinds.items() if kind == CATEGORICAL]  # read as dictionary arrays
        self._files = threading.local()

    @property
    def place(self) -> Path:
        """The table in messages."""
        return self.path

    def batches(self, columns: Sequence[str], group: int | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Pairs (number of the first row, batch) of one row group, or of all row groups in turn."""
        file = self._opened()
        for number in range(self.groups) if group is None else [group]:  # iter_batches would keep all row groups
            first = self.firsts[number]
            rows = file.read_row_group(number, columns=columns, use_threads=False)
            for batch in rows.combine_chunks().to_batches(max_chunksize=self.batch_rows):
                yield first, batch
                first += len(batch)

    def _opened(self) -> pq.ParquetFile:
        """The open file of this thread. To open it takes time in proportion to all columns, of which few are read."""
        if not hasattr(self._files, "own"):
            self._files.own = pq.ParquetFile(self.path, metadata=self.metadata, read_dictionary=self.coded)
        file: pq.ParquetFile = self._files.own
        return file

    def column(self, name: str) -> np.ndarray:
        """(n,): a whole column without missing values."""
        return np.concatenate([batch[name].to_numpy() for _, batch in self.batches([name])])

    def whole(self, name: str) -> pa.Array:
        """(n,): a whole column; as dictionary array, unless it is a field of another kind than categorical."""
        column = pa.chunked_array([batch[name] for _, batch in self.batches([name])])
        if self.kinds.get(name, CATEGORICAL) == CATEGORICAL and not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        return column.combine_chunks()

    def scan(self, columns: Sequence[str], title: str) -> Iterator[tuple[int, pa.RecordBatch]]:
        """`batches` of all row groups, with a progress bar."""
        with progress_bar(title, self.firsts[-1], " rows") as progress:
            for first, batch in self.batches(columns):
                yield first, batch
                progress.update(len(batch))


def plain(column: pa.Array) -> pa.Array:
    """A column without a dictionary."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
