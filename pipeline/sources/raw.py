"""The raw table that `ingest` makes of a source."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.sources.source import BAG, CATEGORICAL, LABEL, NUMERIC, ORACLE, TIME, BadData, Source

GROUP_ROWS = 1 << 17  # rows of a row group of the raw table; part of what its checksum sees
DICTIONARY_BYTES = 16 << 20  # room for the distinct values of one column of a row group


def write_raw(source: Source, path: Path) -> dict[str, Any]:
    """Write the raw table as Parquet; the same rows give the same bytes, whatever the source's batches.

    Args:
        source: is read once, in batches.
        path: of the Parquet file to write.

    Returns:
        The contents of raw.json: ``rows``, ``label_rate``, ``sha256`` of the file, ``fields`` (name -> kind),
        ``time`` and ``oracle`` (whether there is one), ``defaults``, ``facts``.

    Raises:
        BadData: if there are no rows, if all labels are the same, or if the source breaks its contract.
    """
    rows = positives = 0
    schema: pa.Schema | None = None
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tqdm(desc="ingest", unit=" rows", unit_scale=True, delay=1))
        writing: Future[None] | None = None
        for table in _groups(source.batches):
            if schema is None:
                schema = _checked_schema(source, table.schema)
                options = {"dictionary_pagesize_limit": DICTIONARY_BYTES, "write_statistics": False}
                writer = stack.enter_context(pq.ParquetWriter(path, schema, **options))
                thread = stack.enter_context(ThreadPoolExecutor(1))  # writes a group while the next is read
            table = table.select(schema.names)
            _check_values(source, table, rows)
            if writing is not None:
                writing.result()
            writing = thread.submit(writer.write_table, table, row_group_size=GROUP_ROWS)
            rows += len(table)
            positives += pc.sum(table[LABEL]).as_py()
            progress.update(len(table))
        if writing is not None:
            writing.result()
    if schema is None or not rows:
        raise BadData("there are no rows", file=source.origin, remedy="give a file with at least one row of each label")
    if positives in (0, rows):
        raise BadData(
            f"all {rows:,} labels are the same",
            file=source.origin,
            value=int(positives > 0),
            remedy="AUC needs both 0 and 1; check which column is the label, and which of its values is positive",
        )
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "rows": rows,
        "label_rate": positives / rows,
        "sha256": checksum,
        "fields": dict(source.fields),
        TIME: TIME in schema.names,
        ORACLE: ORACLE in schema.names,
        "defaults": dict(source.defaults),
        "facts": dict(source.facts),
    }


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of GROUP_ROWS rows, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while count + len(batch) >= GROUP_ROWS:
            head = batch.slice(0, GROUP_ROWS - count)
            batch = batch.slice(GROUP_ROWS - count)
            yield pa.Table.from_batches([*waiting, head])
            waiting, count = [], 0
        if len(batch):
            waiting.append(batch)
            count += len(batch)
    if waiting:
        yield pa.Table.from_batches(waiting)


def _checked_schema(source: Source, given: pa.Schema) -> pa.Schema:
    """The columns in canonical order, or an error if their types are not the contract's."""
    rules = {LABEL: pa.types.is_uint8, **{name: _RULES[kind] for name, kind in source.fields.items()}}
    if TIME in given.names:
        rules[TIME] = pa.types.is_int64
    if ORACLE in given.names:
        rules[ORACLE] = pa.types.is_float64
    for name, rule in rules.items():
        if name not in given.names:
            raise BadData(f"no column {name!r}", file=source.origin, remedy=f"there are {given.names}")
        kind = given.field(name).type
        if not rule(kind):
            raise BadData(
                f"column {name!r} is {kind}, which does not suit a {source.fields.get(name, name)}",
                file=source.origin,
                remedy="see Source in pipeline/source.py for the types",
            )
    return pa.schema([pa.field(name, given.field(name).type) for name in rules])


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


_RULES = {
    CATEGORICAL: lambda kind: _is_text(kind) or pa.types.is_integer(kind),
    NUMERIC: lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind),
    BAG: lambda kind: (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type),
}


def _check_values(source: Source, table: pa.Table, first_row: int) -> None:
    """Hold the values to the contract. Rows are counted from 1."""
    good = {LABEL: (pc.less_equal(table[LABEL], 1), "must be 0 or 1")}
    if TIME in table.schema.names:
        good[TIME] = (pc.is_valid(table[TIME]), "must not be missing")
    if ORACLE in table.schema.names:
        chance = table[ORACLE]
        good[ORACLE] = (pc.and_(pc.greater_equal(chance, 0), pc.less_equal(chance, 1)), "must be within 0 and 1")
    for name, kind in source.fields.items():
        if kind == NUMERIC and pa.types.is_floating(table[name].type):
            good[name] = (pc.fill_null(pc.invert(pc.is_inf(table[name])), True), "must be finite")
    for name, (flags, sentence) in good.items():
        flags = pc.fill_null(flags, False)
        if not pc.all(flags).as_py():
            row = int(np.argmin(flags.to_numpy()))
            raise BadData(
                f"column {name!r}, row {first_row + row + 1:,}: {sentence}",
                file=source.origin,
                value=str(table[name][row].as_py()),
                remedy="correct the value or leave the row out",
            )
