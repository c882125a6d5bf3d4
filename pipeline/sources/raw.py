"""The raw table: the output of the stage ``ingest``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.sources.events import has_value
from pipeline.sources.source import (
    BAG,
    BASKET,
    CATEGORICAL,
    EVENT,
    ITEM,
    LABEL,
    NUMERIC,
    ORACLE,
    TEST,
    TIME,
    USER,
    BadData,
    Interacting,
    Source,
)
from pipeline.workflow.outputs import checksum
from pipeline.workflow.progress import progress

GROUP_ROWS = 1 << 17  # rows of a row group of the raw table; the table's checksum depends on it
DICTIONARY_BYTES = 16 << 20  # room for the distinct values of one column of a row group
LABEL_TYPES = {pa.uint8(): "uint8", pa.float64(): "float64"}  # and their names in raw.json
LARGEST_LABEL = float(np.finfo(np.float32).max)  # encoded labels are float32


def write_raw(source: Source, path: Path, learnable: bool = True) -> dict[str, Any]:
    """Write the raw table as Parquet. The same rows give the same bytes, for any size of the source's batches.

    Args:
        source: read once.
        path: of the Parquet file to write.
        learnable: whether it must be possible to learn from the rows and to test by them.

    Returns:
        The contents of raw.json: ``rows``; ``label`` (``type``, "uint8" or "float64", and ``mean``), or None for
        interactions; ``sha256`` of the file; ``fields`` (name -> kind); ``time`` and ``oracle`` (whether there is one);
        ``defaults``; ``facts``; ``notes``; and for interactions, ``interactions``: ``roles`` (field -> role); ``keys``
        (role -> the field that identifies it); ``targets``; ``event``, ``basket`` and ``test`` (whether there is one).

    Raises:
        BadData: if there are no rows, if the source breaks its contract, or, of ``learnable`` rows, if all labels are
            the same, or no interaction can be learned or tested.
    """
    answers = _Labels() if source.interactions is None else _Targets(source.interactions.targets)
    schema: pa.Schema | None = None
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(progress(desc="ingest", unit=" rows", unit_scale=True))
        writing: Future[None] | None = None
        for table in regrouped(source.batches, GROUP_ROWS):
            if schema is None:
                schema = checked_schema(source, table.schema)
                options = {"dictionary_pagesize_limit": DICTIONARY_BYTES, "write_statistics": False}
                writer = stack.enter_context(pq.ParquetWriter(path, schema, **options))
                thread = stack.enter_context(ThreadPoolExecutor(1))  # writes a row group while the next one is read
            table = table.select(schema.names)
            check_values(source, table, answers.rows)
            if writing is not None:
                writing.result()
            writing = thread.submit(writer.write_table, table, row_group_size=GROUP_ROWS)
            answers.add(table)
            bar.update(len(table))
        if writing is not None:
            writing.result()
    if schema is None:
        wanted = "at least two different labels" if source.interactions is None else "interactions"
        raise BadData("there are no rows", file=source.origin, remedy=f"give data with {wanted}")
    if learnable:
        answers.check(source.origin)
    return {
        "rows": answers.rows,
        "label": answers.record(),
        "sha256": checksum(path),
        "fields": dict(source.fields),
        TIME: TIME in schema.names,
        ORACLE: ORACLE in schema.names,
        "defaults": dict(source.defaults),
        "facts": dict(source.facts),
        "notes": list(source.notes),
        **_interactions(source, schema),
    }


def _interactions(source: Source, schema: pa.Schema) -> dict[str, Any]:
    """The entry of raw.json that says how rows are interactions; nothing if they are not."""
    about = source.interactions
    if about is None:
        return {}
    optional = {name: name in schema.names for name in (EVENT, BASKET, TEST)}
    targets = None if about.targets is None else list(about.targets)
    keys = {USER: about.user, ITEM: about.item}
    return {"interactions": {"roles": dict(about.roles), "keys": keys, "targets": targets, **optional}}


class _Labels:
    """Number, sum and range of the labels read so far."""

    def __init__(self) -> None:
        self.rows, self.sum, self.kind = 0, 0.0, ""
        self.least, self.most = float("inf"), float("-inf")

    def add(self, table: pa.Table) -> None:
        self.kind = LABEL_TYPES[table[LABEL].type]
        labels = table[LABEL].to_numpy()
        self.rows += len(labels)
        self.sum += float(labels.sum(dtype=np.float64))
        self.least = min(self.least, float(labels.min()))
        self.most = max(self.most, float(labels.max()))

    def record(self) -> dict[str, Any]:
        """The entry ``label`` of raw.json."""
        return {"type": self.kind, "mean": self.sum / self.rows}

    def check(self, origin: str) -> None:
        """Raise BadData if all labels are the same."""
        if self.least == self.most:
            positive = ", and which of its values means 1" if self.kind == "uint8" else ""
            raise BadData(
                f"all {self.rows:,} labels are {self.most:g}, so there is nothing to predict",
                file=origin,
                remedy=f"check which column is the label{positive}",
            )


class _Targets:
    """Number and types of the interactions read so far, and number of those for tests."""

    def __init__(self, targets: Sequence[str] | None) -> None:
        self.targets = targets
        self.types: set[str] = set()
        self.rows = self.tests = 0
        self.split = False

    def add(self, table: pa.Table) -> None:
        self.rows += len(table)
        if self.targets is not None:
            self.types.update(table[EVENT].unique().to_pylist())
        if TEST in table.schema.names:
            self.split = True
            self.tests += pc.sum(table[TEST]).as_py()

    def record(self) -> None:
        """The entry ``label`` of raw.json."""

    def check(self, origin: str) -> None:
        """Raise BadData if nothing can be learned or tested."""
        absent = sorted(set(self.targets or ()) - self.types)
        if absent:
            raise BadData(
                f"targets must be types of events that occur, {', '.join(sorted(self.types))}",
                file=origin,
                value=absent,
                remedy="correct or remove them",
            )
        if self.split and self.tests in (0, self.rows):
            empty, full = ("test", "training") if not self.tests else ("training", "test")
            raise BadData(
                f"the publisher's split has no {empty} rows, and {self.rows:,} {full} rows",
                file=origin,
                remedy="check both files",
            )


def regrouped(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``rows`` rows; the last table may be shorter, and none is empty."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while count + len(batch) >= rows:
            head = batch.slice(0, rows - count)
            batch = batch.slice(rows - count)
            yield pa.Table.from_batches([*waiting, head])
            waiting, count = [], 0
        if len(batch):
            waiting.append(batch)
            count += len(batch)
    if waiting:
        yield pa.Table.from_batches(waiting)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


_RULES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    LABEL: ("uint8 or float64", lambda kind: kind in LABEL_TYPES),
    TIME: ("int64", pa.types.is_int64),
    ORACLE: ("float64", pa.types.is_float64),
    EVENT: ("strings", lambda kind: _is_text(kind)),
    BASKET: ("strings", lambda kind: _is_text(kind)),
    TEST: ("uint8", pa.types.is_uint8),
    CATEGORICAL: ("strings or integers", lambda kind: _is_text(kind) or pa.types.is_integer(kind)),
    NUMERIC: ("integers or floats", lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind)),
    BAG: (
        "lists of strings",
        lambda kind: (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type),
    ),
}


def checked_schema(source: Source, schema: pa.Schema) -> pa.Schema:
    """The columns in their fixed order.

    Raises:
        BadData: if a column is missing, or if `Source` does not allow its type.
    """
    there = set(schema.names)
    about = source.interactions
    first, others = ([LABEL], (TIME, ORACLE)) if about is None else ([], (EVENT, BASKET, TEST, TIME))
    needed = [EVENT] if about is not None and about.targets is not None else []
    optional = [name for name in others if name in there or name in needed]
    kinds = {name: name for name in first} | dict(source.fields) | {name: name for name in optional}
    for name, kind in kinds.items():
        if name not in there:
            raise BadData(f"no column {name!r}", file=source.origin, remedy=f"there are {schema.names}")
        words, suits = _RULES[kind]
        if not suits(schema.field(name).type):
            raise BadData(
                f"column {name!r} must be {words}, got {schema.field(name).type}",
                file=source.origin,
                remedy="see `Source` in pipeline/sources/source.py for the allowed types",
            )
    return pa.schema([pa.field(name, schema.field(name).type) for name in kinds])


def check_values(source: Source, table: pa.Table, first_row: int) -> None:
    """Raise BadData for a value that `Source` does not allow. Messages count rows from 1."""
    rules = _label_rules(table) if source.interactions is None else _interaction_rules(source.interactions, table)
    if TIME in table.schema.names:
        rules[TIME] = (pc.is_valid(table[TIME]), "must not be missing")
    for name, kind in source.fields.items():
        if kind == NUMERIC and pa.types.is_floating(table[name].type):
            rules[name] = (pc.fill_null(pc.invert(pc.is_inf(table[name])), True), "must be finite")
    for name, (flags, sentence) in rules.items():
        flags = pc.fill_null(flags, False)
        if not pc.all(flags).as_py():
            row = int(np.argmin(flags.to_numpy()))
            raise BadData(
                f"column {name!r}, row {first_row + row + 1:,}: {sentence}",
                file=source.origin,
                value=str(table[name][row].as_py()),
                remedy="correct the value or leave the row out",
            )


Rules = dict[str, tuple[pa.ChunkedArray, str]]  # column -> which of its values are allowed, and the rule in words


def _label_rules(table: pa.Table) -> Rules:
    labels = table[LABEL]
    binary = pa.types.is_uint8(labels.type)
    if binary:
        rules = {LABEL: (pc.less_equal(labels, 1), "must be 0 or 1")}
    else:
        rules = {LABEL: (pc.less_equal(pc.abs(labels), LARGEST_LABEL), f"must be a number within ±{LARGEST_LABEL:.2g}")}
    if ORACLE in table.schema.names:
        expected = table[ORACLE]
        inside = (
            pc.and_(pc.greater_equal(expected, 0), pc.less_equal(expected, 1)) if binary else pc.is_finite(expected)
        )
        rules[ORACLE] = (inside, "must be a number from 0 to 1" if binary else "must be a finite number")
    return rules


def _interaction_rules(about: Interacting, table: pa.Table) -> Rules:
    names = [name for name in (about.user, about.item, EVENT, BASKET) if name in table.schema.names]
    rules: Rules = {name: (has_value(table[name]), "must not be missing or empty") for name in names}
    if BASKET in rules and about.targets is not None:
        others = pc.invert(pc.is_in(table[EVENT], pa.array(about.targets, pa.string())))
        rules[BASKET] = (pc.or_(rules[BASKET][0], pc.and_(others, pc.is_valid(table[BASKET]))), rules[BASKET][1])
    if TEST in table.schema.names:
        rules[TEST] = (pc.less_equal(table[TEST], 1), "must be 0 or 1")
    return rules
