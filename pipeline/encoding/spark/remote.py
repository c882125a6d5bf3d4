"""The rows at an address, which Spark reads once and keeps on the disks of the workers."""

from __future__ import annotations

import functools
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encoding.raw_table import LABEL_DTYPES
from pipeline.encoding.spark.pieces import Pieces
from pipeline.encoding.spark.reader import BadPiece, Place, Reader
from pipeline.sources.parquet import MARK
from pipeline.sources.raw import DICTIONARY_BYTES
from pipeline.sources.source import CATEGORICAL, LABEL, ORACLE, TIME, BadData, NotFound
from pipeline.workflow.address import ADDRESS
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FILE, START = "__file", "__start"  # columns beside the data: the file, and the byte from which a worker reads it
ANSWERS, FIELDS = "answers", "fields"  # columns that hold Parquet: of what a row is judged by, and of its fields
STORED = {  # columns of the pieces that are read: name, Spark's type, Arrow's type
    "key": ("long", pa.int64()),
    "file": ("string", pa.string()),
    "start": ("long", pa.int64()),
    "before": ("long", pa.int64()),
    "rows": ("long", pa.int64()),
    "error": ("string", pa.string()),
    ANSWERS: ("binary", pa.binary()),
    FIELDS: ("binary", pa.binary()),
}


@dataclass(frozen=True)
class RemoteTable:
    """A raw table at an address; see `pipeline.encoding.encoder.Table`."""

    record: dict[str, Any]
    kinds: dict[str, str]
    label_dtype: str

    @property
    def place(self) -> str:
        """The table in messages."""
        return str(self.record[ADDRESS])


def read_address(spark: SparkSession, record: Mapping[str, Any]) -> tuple[RemoteTable, Pieces]:
    """The rows at an address.

    Rows are numbered file by file in the order of names, as `pipeline.sources.files.table_files` reads a folder.

    Args:
        spark: the session.
        record: the raw.json that ``ingest`` wrote: the address, and the name and the options of the data set.

    Raises:
        ValueError: if a row is wrong; the message names the file, and the byte from which lines are counted.
        NotFound: if Spark finds no files.
    """
    from pyspark import StorageLevel

    options = checked_options([plug("datasets", record["dataset"]).read], record["options"], "dataset.options")
    reader, data = _opened(spark, record, options)
    head = reader.first if isinstance(reader.first, pa.Table) else pa.table({"value": [reader.first]})
    source, one = reader.rows(head.to_batches()[0], Place(record[ADDRESS], 0, 1))
    if source.interactions is not None:
        remedy = "set encode.engine to local in params.yaml, and dataset.path to a copy on this machine"
        raise BadData("has interactions, and Spark encodes rows with labels only", file=record[ADDRESS], remedy=remedy)
    stored = ", ".join(f"{name} {kind}" for name, (kind, _) in STORED.items())
    frame = data.mapInArrow(functools.partial(_stored, reader), stored).persist(StorageLevel.DISK_ONLY)
    firsts, rows = {}, 0
    found = frame.drop(ANSWERS, FIELDS).collect()
    for piece in sorted(found, key=lambda piece: (unquote(piece.file), piece.start, piece.before)):
        if piece.error is not None:
            raise BadPiece(piece.error)
        if piece.rows:
            firsts[piece.key] = rows
            rows += piece.rows
    schema, fields = one.schema, dict(source.fields)
    about = {"rows": rows, "fields": fields, "defaults": dict(source.defaults), "facts": dict(source.facts)}
    about |= {name: name in schema.names for name in (TIME, ORACLE)}
    holders = {name: FIELDS if name in fields else ANSWERS for name in schema.names}
    coded = [name for name, kind in fields.items() if kind == CATEGORICAL]
    types = {name: schema.field(name).type for name in fields}
    pieces = Pieces(frame, functools.partial(_of_blobs, holders, coded), firsts, rows, types, holders)
    return RemoteTable({**record, **about}, fields, LABEL_DTYPES[schema.field(LABEL).type]), pieces


def _opened(spark: SparkSession, record: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Reader, DataFrame]:
    """A reader of the files at the address, and their lines, or rows of Parquet, with their places."""
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import AnalysisException
    from pyspark.sql import functions as sql

    def lines(path: str) -> DataFrame:
        return spark.read.option("lineSep", "\n").text(path)

    places = [sql.col("_metadata.file_path").alias(FILE), sql.col("_metadata.file_block_start").alias(START)]
    value = sql.col("value").cast("binary").alias("value")  # bytes, in whatever encoding
    address, dataset = record[ADDRESS], record["dataset"]
    try:
        files = sorted(unquote(file) for file in lines(address).inputFiles())
        if not files:
            raise NotFound(f"Spark finds no file at {address}; correct the address")
        for file in files:  # Spark itself may write a first part without rows
            filled = lines(file).where(sql.col("_metadata.file_block_start") == 0).where("value not in ('', '\\r')")
            if first := [row.value for row in filled.select(value).limit(2).collect()]:
                break
        else:
            raise BadData("is empty", file=files[0], remedy="the file is incomplete, or it is the wrong one")
        name = PurePosixPath(file).name.removesuffix(".gz")
        if not first[0].startswith(MARK):
            reader = Reader.of_text(dataset, options, name, first, file)
            return reader, lines(address).select(value, *places)
        named = _texts(record["options"])
        table = spark.read.parquet(address)
        wanted = [sql.col("`" + column.replace("`", "``") + "`") for column in table.columns if column in named]
        rows = (spark.read.parquet(file).select(*wanted).limit(1).toArrow() for file in files)
        if (row := next(filter(len, rows), None)) is None:
            raise BadData("has no rows", file=address, remedy="the files are incomplete, or they are the wrong ones")
        return Reader(dataset, options, name, row), table.select(*wanted, *places)
    except (AnalysisException, Py4JJavaError) as error:
        reason = str(getattr(error, "java_exception", error)).splitlines()[0]
        raise NotFound(
            f"Spark cannot read {address} ({reason}); correct the address, or give Spark the package of its file "
            "system, as in spark.jars.packages=org.apache.hadoop:hadoop-aws:3.5.0"
        ) from error


def _texts(options: Any) -> set[str]:
    """All texts in options, among which are the names of the columns that a data set reads."""
    if isinstance(options, Mapping):
        return _texts([*options, *options.values()])
    if isinstance(options, Sequence) and not isinstance(options, str):
        return set().union(*map(_texts, options))
    return {str(options)}


def _stored(reader: Reader, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Read pieces; runs on the workers. A piece that cannot be read has a message."""
    from pyspark import TaskContext

    context = TaskContext.get()
    schema = pa.schema([(name, kind) for name, (_, kind) in STORED.items()])
    keys = itertools.count((context.partitionId() if context else 0) << 32)
    seen: Counter[tuple[str, int]] = Counter()
    for batch in batches:
        for file, start, piece in _runs(batch):
            before = seen[file, start]
            seen[file, start] += len(piece)
            made = {"key": next(keys), "file": file, "start": start, "before": before, "rows": 0, "error": None}
            made |= {ANSWERS: None, FIELDS: None}
            try:
                source, rows = reader.rows(piece, Place(unquote(file), start, before))
            except BadPiece as error:
                made["error"] = str(error)
            else:
                answers = [name for name in rows.schema.names if name not in source.fields]
                made |= {"rows": len(rows), ANSWERS: _blob(rows, answers), FIELDS: _blob(rows, list(source.fields))}
            yield from pa.Table.from_pylist([made], schema).to_batches()


def _runs(batch: pa.RecordBatch) -> Iterator[tuple[str, int, pa.RecordBatch]]:
    """The pieces of a batch that are from one place: the file, the byte from which a worker reads it, and the rows."""
    files, starts = batch[FILE].dictionary_encode().indices.to_numpy(), batch[START].to_numpy()
    edges = np.flatnonzero((np.diff(files) != 0) | (np.diff(starts) != 0)) + 1
    data = batch.select([name for name in batch.schema.names if name not in (FILE, START)])
    for begin, end in itertools.pairwise([0, *edges.tolist(), len(batch)]):
        if end > begin:
            yield batch[FILE][begin].as_py(), int(starts[begin]), data.slice(begin, end - begin)


def _blob(table: pa.Table, names: Sequence[str]) -> bytes:
    sink = io.BytesIO()
    options = {"dictionary_pagesize_limit": DICTIONARY_BYTES, "write_statistics": False}
    pq.write_table(table.select(names), sink, row_group_size=max(1, len(table)), **options)
    return sink.getvalue()


def _of_blobs(
    holders: Mapping[str, str], coded: Sequence[str], piece: Mapping[str, Any], columns: Sequence[str]
) -> pa.RecordBatch:
    """Some columns of a piece; runs on the workers."""
    found: dict[str, pa.Array] = {}
    for holder in {holders[name] for name in columns}:
        names = [name for name in columns if holders[name] == holder]
        with pq.ParquetFile(
            pa.BufferReader(piece[holder]), read_dictionary=[name for name in coded if name in names]
        ) as file:
            rows = file.read(columns=names, use_threads=False).combine_chunks().to_batches()[0]
        found |= {name: rows[name] for name in names}
    return pa.RecordBatch.from_pydict(found)
