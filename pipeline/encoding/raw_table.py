"""The raw table, read in batches."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encoding.threads import progress_bar
from pipeline.sources.source import CATEGORICAL, LABEL
from pipeline.workflow.outputs import broken, read_json

LABEL_DTYPES = {pa.uint8(): "|u1", pa.float64(): "<f4"}  # types of raw labels, and of encoded labels


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
        self.record: dict[str, Any] = read_json(folder / "raw.json")
        self.kinds: dict[str, str] = self.record["fields"]
        self.path = folder / "table.parquet"
        self.path.stat()  # pyarrow's own error does not name the file
        try:
            self.metadata = pq.read_metadata(self.path)
        except pa.ArrowInvalid as error:
            raise broken(self.path, f"is not a Parquet file ({error})") from error
        self.label_dtype = LABEL_DTYPES[self.metadata.schema.to_arrow_schema().field(LABEL).type]
        self.groups = self.metadata.num_row_groups
        self.sizes = [self.metadata.row_group(group).num_rows for group in range(self.groups)]
        self.firsts = [0, *itertools.accumulate(self.sizes)]
        self.coded = [name for name, kind in self.kinds.items() if kind == CATEGORICAL]  # read as dictionary arrays
        self._files = threading.local()

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

    def scan(self, columns: Sequence[str], title: str) -> Iterator[tuple[int, pa.RecordBatch]]:
        """`batches` of all row groups, with a progress bar."""
        with progress_bar(title, self.firsts[-1], " rows") as progress:
            for first, batch in self.batches(columns):
                yield first, batch
                progress.update(len(batch))
