"""The raw table, read in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.source import BadData


class RawTable:
    """The raw table, in batches; several threads may read at once.

    Args:
        coded: columns that are read as dictionary arrays.
    """

    def __init__(self, path: Path, coded: Sequence[str], batch_rows: int) -> None:
        self.path, self.coded, self.batch_rows = path, coded, batch_rows
        path.stat()  # pyarrow's own error does not name the file
        try:
            self.metadata = pq.read_metadata(path)
        except pa.ArrowInvalid as error:
            raise BadData(f"is no Parquet file ({error})", file=path, remedy="ingest the data again") from error
        self.groups = self.metadata.num_row_groups
        self.sizes = [self.metadata.row_group(group).num_rows for group in range(self.groups)]
        self.firsts = [0, *itertools.accumulate(self.sizes)]

    def batches(self, columns: Sequence[str], group: int | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of the first row, batch) of one row group, or of all in turn."""
        with pq.ParquetFile(self.path, metadata=self.metadata, read_dictionary=self.coded) as file:
            for number in range(self.groups) if group is None else [group]:  # iter_batches would keep all it has read
                first = self.firsts[number]
                rows = file.read_row_group(number, columns=columns, use_threads=False)
                for batch in rows.combine_chunks().to_batches(max_chunksize=self.batch_rows):
                    yield first, batch
                    first += len(batch)
