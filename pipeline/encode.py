"""Turns the raw table into feature ids, in two passes: count the training rows' values, then look all values up.

Whatever is learned from data - which values are known, their order, the edges of buckets - is learned from the
rows of part ``train``. The result is the same, byte for byte, whatever the size of the batches read.

Threads share the work, fields in the first pass and row groups in the second. Memory does not grow with the rows,
but for one bit a row, nor with values that are too rare for an id.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.schema import PADDING, UNKNOWN, Field, Schema
from pipeline.source import BAG, CATEGORICAL, GROUP_ROWS, LABEL, NUMERIC, ORACLE, TIME, BadData

PARTS = ("train", "arch", "val", "test")
TRAIN = 0

MIN_COUNT = 2  # where neither the settings nor the data set say otherwise
MAX_BAG = 8
SAMPLE_ROWS = 1 << 17  # training rows that quantiles are taken of
MERGE_ROWS = 1 << 17  # counts wait until there are so many, then they are added up
RICH_VALUES = 1 << 18  # a field with more values is read twice, so that rare ones need no memory of their own
SKETCH_BITS = 22
HASHED_BYTES = 64
THREADS = 8  # at most; each holds a row group
BINS = 1 << 16

A = TypeVar("A")
B = TypeVar("B")
Batches = Callable[..., Iterator[tuple[int, pa.RecordBatch]]]  # (columns) -> (number of the first row, batch)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The ``encode`` section of params.yaml.

    Args:
        split: ``by``: "random", a hash of the row's number and the seed; or "time", parts that follow each other
            in time. ``train``, ``arch``, ``val``, ``test``: shares of rows, which sum to 1. With "time", rows of
            the same time stay together in the earlier part, so the shares are met as closely as that allows.
        min_count: training rows that must show a value for it to get an id; None for the data set's own.
        numeric: how a number becomes a category: "log-square" (see `log_square`) or "quantiles".
        buckets: at most so many, by quantiles.
        max_bag: slots of a bag; None for the data set's own.
        seed: of the random split and of the sample for quantiles.
    """

    split: Mapping[str, Any]
    min_count: int | None = None
    numeric: str = "log-square"
    buckets: int = 20
    max_bag: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if set(self.split) != {"by", *PARTS}:
            raise ValueError(f"encode.split must have by, {', '.join(PARTS)}; however it has {', '.join(self.split)}")
        if self.split["by"] not in ("random", "time"):
            raise ValueError(f"encode.split.by must be 'random' or 'time', however {self.split['by']!r}")
        if not all(isinstance(share, int | float) and 0 < share < 1 for share in self.shares):
            raise ValueError(f"encode.split: every share must lie between 0 and 1, however {dict(self.split)}")
        if abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError(f"encode.split: shares must sum to 1, however {self.shares} sum to {sum(self.shares):g}")
        if self.numeric not in ("log-square", "quantiles"):
            raise ValueError(f"encode.numeric must be 'log-square' or 'quantiles', however {self.numeric!r}")
        for name, least in (("min_count", 1), ("buckets", 2), ("max_bag", 1), ("seed", 0)):
            value = getattr(self, name)
            own = value is None and name in ("min_count", "max_bag")
            if not own and (not isinstance(value, int) or value < least):
                raise ValueError(f"encode.{name} must be a whole number of at least {least}, however {value!r}")

    @property
    def shares(self) -> list[float]:
        return [self.split[part] for part in PARTS]


def log_square(values: np.ndarray) -> np.ndarray:
    """floor(ln(v)^2) for v > 2, else floor(v): the categories of the Criteo challenge's winners; (n,) -> (n,) int64.

    Source: Y. Juan et al. 2014, 3 Idiots' Approach for Display Advertising Challenge; Zhao et al. 2021 (AutoDim).

    NOTE[DIFF]: the winners' code keeps v <= 2 apart ("SP2"); as in later libraries the two ranges share the
    categories 1 and 2 here: v = 1 with v = 3 and 4, and v = 2 with v = 5 (ln(4)^2 = 1.9, ln(5)^2 = 2.6).
    """
    values = values.astype(np.float64)
    large = values > 2
    logs = np.log(values, where=large, out=np.zeros_like(values))
    floors: np.ndarray = np.floor(np.where(large, logs**2, values)).astype(np.int64)
    return floors


def splitmix64(rows: np.ndarray, seed: int) -> np.ndarray:
    """(n,) uint64: for each row number a random-looking one, the same on every machine.

    Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators: output ``row`` of the generator
    whose state starts at the hash of the seed.
    """

    def mixed(z: Any) -> Any:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    start = mixed((np.array([seed], dtype=np.uint64) + np.uint64(1)) * golden)
    numbers: np.ndarray = mixed(start + (rows.astype(np.uint64) + np.uint64(1)) * golden)
    return numbers


def encode(raw: Path, folder: Path, settings: Settings, batch_rows: int = GROUP_ROWS) -> dict[str, Any]:
    """Write the encoded parts, their vocabulary and their schema.

    Args:
        raw: folder with table.parquet and raw.json, as ``ingest`` writes them.
        folder: is made, and gets, for every part with N rows in S slots,

            * ``<part>/ids.npy`` (N, S) int32, ``<part>/labels.npy`` (N,) uint8, and ``<part>/oracle.npy`` (N,)
              float64 if the raw table has one; rows in their raw order;
            * ``vocabulary.parquet``: feature (name of the field), value (as text, null for missing), count (in
              training rows), id;
            * ``schema.json``: fields and widths as `Schema` reads them, and how the rest was made.

        batch_rows: rows looked at together, within a row group; changes nothing in the result.

    Returns:
        What schema.json holds.

    Raises:
        ValueError: if the settings do not suit the data; `BadData` names the part and the remedy.
    """
    try:
        facts = json.loads((raw / "raw.json").read_text())
    except ValueError as error:
        raise BadData(f"is no JSON ({error})", file=raw / "raw.json", remedy="ingest the data again") from error
    kinds: dict[str, str] = facts["fields"]
    min_count = settings.min_count or facts["defaults"].get("min_count", MIN_COUNT)
    max_bag = settings.max_bag or facts["defaults"].get("max_bag", MAX_BAG)
    if settings.split["by"] == "time" and not facts[TIME]:
        raise BadData("has no time to split by", file=raw, remedy="set encode.split.by to 'random' in params.yaml")

    table = _Table(raw / "table.parquet", [name for name, kind in kinds.items() if kind == CATEGORICAL], batch_rows)

    def batches(columns: Sequence[str], title: str) -> Iterator[tuple[int, pa.RecordBatch]]:
        with _progress(title, facts["rows"], " rows") as progress:
            for first, batch in table.batches(columns):
                yield first, batch
                progress.update(len(batch))

    with _threads() as threads:
        split = _Split(settings, batches)
        edges = _quantile_edges(batches, split, kinds, settings) if settings.numeric == "quantiles" else {}
        columns = {name: _Feature(name, kind, edges.get(name), max_bag) for name, kind in kinds.items()}

        tally = np.zeros((len(PARTS), 2), dtype=np.int64)  # rows by part and label
        train = []  # for each batch, a bit for each row
        for first, batch in batches([LABEL, *split.columns], "(splitting)"):
            part = split(first, batch)
            np.add.at(tally, (part, batch[LABEL].to_numpy()), 1)
            train.append(np.packbits(part == TRAIN))
        _check_parts(tally, raw)

        def learned(feature: _Feature) -> pa.Table:
            def pairs() -> Iterator[tuple[pa.Array, np.ndarray]]:
                for (_, batch), bits in zip(table.batches([feature.name]), train, strict=True):
                    yield batch[feature.name], np.unpackbits(bits, count=len(batch)).view(bool)

            return feature.learn(pairs, min_count)

        folder.mkdir(parents=True)
        with _progress("(counting)", len(columns), " fields") as progress:
            known = _in_order(threads, learned, columns.values(), progress)
            schema = _write_vocabulary(zip(columns.values(), known, strict=True), folder / "vocabulary.parquet")
        sizes = {part: int(n) for part, n in zip(PARTS, tally.sum(axis=1), strict=True)}
        with contextlib.ExitStack() as stack:
            arrays = {
                f"{part}/{name}.npy": stack.enter_context(_Array(folder / part / f"{name}.npy", dtype, shape))
                for part, n in sizes.items()
                for name, dtype, shape in (
                    ("ids", "<i4", (n, schema.num_slots)),
                    ("labels", "|u1", (n,)),
                    *([("oracle", "<f8", (n,))] if facts[ORACLE] else []),
                )
            }
            plain = {"labels": LABEL} | ({"oracle": ORACLE} if facts[ORACLE] else {})

            def encoded(group: int) -> list[tuple[str, np.ndarray]]:
                """(file, rows to append) for one row group; its columns are read one by one, for the cache's sake."""
                slots = np.empty((schema.num_slots, table.sizes[group]), dtype=np.int32)
                start = 0
                for field in schema.fields:
                    end = 0
                    for _, batch in table.batches([field.name], group):
                        free = slots[start : start + field.width, end : end + len(batch)]
                        columns[field.name].look_up(batch[field.name], free)
                        end += len(batch)
                    start += field.width
                pieces, start = [], 0
                for first, batch in table.batches([*plain.values(), *split.columns], group):
                    part = split(first, batch)
                    for number, place in enumerate(PARTS):
                        rows = np.flatnonzero(part == number)
                        ids = slots.take(start + rows, axis=1)
                        pieces.append((f"{place}/ids.npy", np.ascontiguousarray(ids.T)))
                        for name, column in plain.items():
                            pieces.append((f"{place}/{name}.npy", batch[column].to_numpy().take(rows)))
                    start += len(batch)
                return pieces

            with _progress("(writing)", table.groups, " row groups") as progress:
                for pieces in _in_order(threads, encoded, range(table.groups), progress):
                    for name, array in pieces:
                        arrays[name].append(array)

    record = {
        **schema.to_dict(),
        "rows": sizes,
        "label_rate": {part: float(ones / (zeros + ones)) for part, (zeros, ones) in zip(PARTS, tally, strict=True)},
        "sha256": {name: array.sha256 for name, array in arrays.items()},
        "raw_sha256": facts["sha256"],
        "kinds": kinds,
        "split": {**settings.split, **split.record()},
        "seed": settings.seed,
        "min_count": min_count,
        "max_bag": max_bag,
        "numeric": settings.numeric,
        "edges": {name: list(map(float, found)) for name, found in edges.items()},
        "facts": facts["facts"],
    }
    (folder / "schema.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def as_stream(raw: Path, max_bag: int | None = None) -> tuple[Schema, np.ndarray, np.ndarray]:
    """A log in the order of its time: all values get an id, in the order in which they appear first.

    So a value's row in a table is not there before the value is, except for the room it takes. Rows without a time, and
    those of one time, are in their raw order. Numbers are taken by `log_square`, which learns nothing from data.

    Args:
        raw: folder with table.parquet and raw.json, as ``ingest`` writes them. All of it is held in memory.
        max_bag: slots of a bag; None for the data set's own.

    Returns:
        schema; ids (n, S) int32, where `UNKNOWN` stands for no value at all; labels (n,) uint8.
    """
    facts = json.loads((raw / "raw.json").read_text())
    max_bag = max_bag or facts["defaults"].get("max_bag", MAX_BAG)
    table = pq.read_table(raw / "table.parquet")
    order = np.argsort(table[TIME].to_numpy(), kind="stable") if facts[TIME] else np.arange(len(table))
    fields, slots = [], []
    for name, kind in facts["fields"].items():
        feature = _Feature(name, kind, None, max_bag)
        ids = np.empty((feature.width, len(table)), dtype=np.int32)
        feature.appear(table[name].combine_chunks().take(pa.array(order)), ids)
        fields.append(Field(name, int(ids.max()) + 1, feature.width))
        slots.append(ids)
    labels = table[LABEL].to_numpy()[order]
    return Schema(tuple(fields)), np.ascontiguousarray(np.concatenate(slots).T), labels


class _Table:
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


def _progress(title: str, total: int, unit: str) -> tqdm:
    return tqdm(desc=f"encode {title}", total=total, unit=unit, unit_scale=True, delay=1)


def _workers() -> int:
    return min(THREADS, pa.cpu_count())


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Work that is still waiting when the block ends is dropped."""
    pool = ThreadPoolExecutor(_workers())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], progress: tqdm) -> Iterator[B]:
    """``function`` of every item, in order; the threads run ahead of who takes the results, but not far."""
    ahead: deque[Future[B]] = deque()
    for item in items:
        ahead.append(pool.submit(function, item))
        if len(ahead) >= _workers():
            yield ahead.popleft().result()
            progress.update()
    while ahead:
        yield ahead.popleft().result()
        progress.update()


class _Split:
    """Says which part a row belongs to, from its number or its time."""

    def __init__(self, settings: Settings, batches: Batches) -> None:
        self.bounds = np.cumsum(settings.shares)[:-1]
        self.seed = settings.seed
        self.columns = [TIME] if settings.split["by"] == "time" else []
        self.last_times = self._last_times(batches) if self.columns else []

    def __call__(self, first_row: int, batch: pa.RecordBatch) -> np.ndarray:
        """(n,) int64: positions in `PARTS`."""
        part: np.ndarray
        if self.columns:
            part = np.searchsorted(self.last_times, batch[TIME].to_numpy(), side="left")
        else:
            numbers = splitmix64(np.arange(first_row, first_row + len(batch)), self.seed)
            part = np.searchsorted(self.bounds, (numbers >> np.uint64(11)) * 2.0**-53, side="right")
        return part

    def record(self) -> dict[str, Any]:
        return {"last_times": [int(time) for time in self.last_times]} if self.columns else {}

    def _last_times(self, batches: Batches) -> list[int]:
        """The last time of each part but the last: the least by which its share of rows has passed."""

        def times() -> Iterator[np.ndarray]:
            for _, batch in batches([TIME], "(times)"):
                yield batch[TIME].to_numpy()

        rows, low, high = 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min
        for values in times():
            rows, low, high = rows + len(values), min(low, values.min()), max(high, values.max())
        return [_ranked(times, int(np.ceil(share * rows - 1e-6)), int(low), int(high)) for share in self.bounds]


def _ranked(chunks: Callable[[], Iterator[np.ndarray]], rank: int, low: int, high: int) -> int:
    """The rank-th smallest of integers within low..high, in a few passes and without holding them."""
    while low < high:
        width = -(-(high - low + 1) // BINS)
        counts = np.zeros(BINS, dtype=np.int64)
        below = 0
        for values in chunks():
            below += int(np.count_nonzero(values < low))
            inside = values[(values >= low) & (values <= high)].astype(np.uint64) - np.uint64(low % 2**64)
            counts += np.bincount((inside // np.uint64(width)).astype(np.int64), minlength=BINS)
        chosen = int(np.searchsorted(np.cumsum(counts), rank - below))
        low, high = low + chosen * width, min(high, low + (chosen + 1) * width - 1)
    return low


def _quantile_edges(
    batches: Batches, split: _Split, kinds: Mapping[str, str], settings: Settings
) -> dict[str, np.ndarray]:
    """Inner edges of the buckets of every numeric field; equal ones count once.

    They are exact up to `SAMPLE_ROWS` training rows, and taken of so many random ones beyond.
    """
    names = [name for name, kind in kinds.items() if kind == NUMERIC]
    if not names:
        return {}
    keys, sample = np.empty(0, dtype=np.uint64), np.empty((0, len(names)))
    for first, batch in batches([*names, *split.columns], "(quantiles)"):
        rows = np.flatnonzero(split(first, batch) == TRAIN)
        values = np.column_stack([_floats(batch[name])[rows] for name in names])
        keys = np.concatenate([keys, splitmix64(first + rows, settings.seed + 1)])
        sample = np.concatenate([sample, values])
        if len(keys) > SAMPLE_ROWS:
            kept = np.argpartition(keys, SAMPLE_ROWS)[:SAMPLE_ROWS]
            keys, sample = keys[kept], sample[kept]
    inner = np.linspace(0, 1, settings.buckets + 1)[1:-1]
    found = {}
    for name, values in zip(names, sample.T, strict=True):
        known = values[~np.isnan(values)]
        found[name] = np.unique(np.quantile(known, inner)) if len(known) else np.empty(0)
    return found


def _floats(column: pa.Array) -> np.ndarray:
    """(n,) float64, NaN for missing."""
    numbers: np.ndarray = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


class _Feature:
    """The vocabulary of one field: learned in the first pass, used in the second."""

    def __init__(self, name: str, kind: str, edges: np.ndarray | None, max_bag: int) -> None:
        self.name, self.kind, self.edges = name, kind, edges
        self.width = max_bag if kind == BAG else 1
        self.values: pa.Array  # the known ones; the i-th has id i + 1

    def learn(self, batches: Callable[[], Iterator[tuple[pa.Array, np.ndarray]]], min_count: int) -> pa.Table:
        """Give the values that are frequent in training rows their ids; return value, count, id of each.

        Args:
            batches: the field's column in pieces (n,), each with (n,) bool: which rows are training rows.
        """
        tables = (self._counted(column, train) for column, train in batches())
        counts = _sum(tables, RICH_VALUES)
        if len(counts) > RICH_VALUES:
            sketch = _Sketch()
            for table in itertools.chain([counts], tables):
                sketch.add(table)
            counts = _sum(sketch.frequent(self._counted(column, train), min_count) for column, train in batches())
        frequent = counts.filter(pc.greater_equal(counts["count"], min_count))
        order = pc.sort_indices(frequent, sort_keys=[("count", "descending"), ("value", "ascending")])
        frequent = frequent.take(order)
        self.values = frequent["value"].combine_chunks()
        return frequent.append_column("id", pa.array(np.arange(1, len(frequent) + 1, dtype=np.int32)))

    def look_up(self, column: pa.Array, slots: np.ndarray) -> None:
        """Fill (width, n) int32 with the ids of n rows."""
        rows, codes, values = self._coded(column)
        self._fill(slots, rows, self._ids_of(values).take(codes))

    def appear(self, column: pa.Array, slots: np.ndarray) -> None:
        """Fill (width, n) int32 with ids from 1 by the order in which values appear first."""
        rows, codes, _ = self._coded(column)
        _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
        rank = np.empty(len(firsts), dtype=np.int32)
        rank[np.argsort(firsts)] = np.arange(1, len(firsts) + 1)
        self._fill(slots, rows, rank[inverse])

    def _fill(self, slots: np.ndarray, rows: np.ndarray | None, ids: np.ndarray) -> None:
        """Put ids into slots (width, n), those of row ``rows[i]`` side by side; see `_coded`."""
        if rows is None:
            slots[0] = ids
            return
        rows, ids = rows[ids != UNKNOWN], ids[ids != UNKNOWN]
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)  # among the known values of its row
        rows, ids, rank = (array[rank < self.width] for array in (rows, ids, rank))
        slots[:] = PADDING
        slots[0] = UNKNOWN
        slots[rank, rows] = ids

    def _ids_of(self, values: pa.Array) -> np.ndarray:
        """(v,) int32: ids of distinct values. Hashes the smaller side, which for rich fields is the batch's."""
        ids = np.full(len(values), UNKNOWN, dtype=np.int32)
        if len(self.values) <= len(values):
            places = pc.index_in(values, self.values)
            ids[places.is_valid().to_numpy(zero_copy_only=False)] = places.drop_null().to_numpy() + 1
        else:
            places = pc.index_in(self.values, values)
            ids[places.drop_null().to_numpy()] = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False)) + 1
        return ids

    def _counted(self, column: pa.Array, train: np.ndarray) -> pa.Table:
        """Each distinct value of the training rows, and how many of them show it."""
        rows, codes, values = self._coded(column)
        counts = np.bincount(codes.take(np.flatnonzero(train if rows is None else train[rows])), minlength=len(values))
        there = np.flatnonzero(counts)
        return pa.table({"value": values.take(pa.array(there)), "count": counts[there]})

    def _coded(self, column: pa.Array) -> tuple[np.ndarray | None, np.ndarray, pa.Array]:
        """(rows, codes, values): value ``values[codes[i]]`` occurs in row ``rows[i]``, rows ascending.

        ``rows`` is None if every row has exactly one value. Within a bag, missing values and repetitions are left out.
        """
        if self.kind == BAG:
            return self._coded_bags(column)
        if self.kind == NUMERIC and pa.types.is_integer(column.type):  # they repeat: look at each once
            column = column.dictionary_encode()
            buckets = self._bucketed(column.dictionary).dictionary_encode()
            column = pa.DictionaryArray.from_arrays(buckets.indices.take(column.indices), buckets.dictionary)
        elif self.kind == NUMERIC:
            column = self._bucketed(column)
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        codes, values = column.indices, column.dictionary
        if codes.null_count:
            codes = pc.fill_null(codes, len(values))
            values = pa.concat_arrays([values, pa.nulls(1, values.type)])
        return None, codes.to_numpy(), values

    def _bucketed(self, column: pa.Array) -> pa.Array:
        numbers = _floats(column)
        missing = np.isnan(numbers)
        numbers = np.where(missing, 0, numbers)
        found = log_square(numbers) if self.edges is None else np.searchsorted(self.edges, numbers, side="right")
        return pa.array(found, mask=missing)

    @staticmethod
    def _coded_bags(column: pa.Array) -> tuple[np.ndarray, np.ndarray, pa.Array]:
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        rows = np.repeat(np.arange(len(column)), lengths)
        flat = pc.list_flatten(column)
        if not pa.types.is_dictionary(flat.type):
            flat = flat.dictionary_encode()
        codes = pc.fill_null(pc.cast(flat.indices, pa.int64()), -1).to_numpy(zero_copy_only=False)
        rows, codes = rows[codes >= 0], codes[codes >= 0]
        _, firsts = np.unique(rows * len(flat.dictionary) + codes, return_index=True)
        firsts.sort()
        return rows[firsts], codes[firsts], flat.dictionary


def _sum(tables: Iterable[pa.Table], limit: int | None = None) -> pa.Table:
    """Counts of values, added up; if there are more than ``limit`` values, perhaps only of the first tables."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting[1:])) > max(MERGE_ROWS, len(waiting[0])):
            waiting = [_merged(waiting)]
            if limit is not None and len(waiting[0]) > limit:
                break
    return _merged(waiting)


def _merged(tables: Sequence[pa.Table]) -> pa.Table:
    summed = pa.concat_tables(tables).group_by("value", use_threads=False).aggregate([("count", "sum")])
    return summed.rename_columns({"value": "value", "count_sum": "count"})


class _Sketch:
    """Counts of more values than there is room for: values are hashed to cells, and share a count with their cell.

    A value occurs at most as often as its cell says, so that none that is frequent is missed, and those that are
    frequent in the sketch alone are few.
    """

    def __init__(self) -> None:
        self.cells = np.zeros(1 << SKETCH_BITS, dtype=np.uint32)

    def add(self, table: pa.Table) -> None:
        np.add.at(self.cells, self._cells_of(table["value"]), table["count"].to_numpy().astype(np.uint32))

    def frequent(self, table: pa.Table, min_count: int) -> pa.Table:
        """The rows whose values may occur so often."""
        return table.filter(pa.array(self.cells[self._cells_of(table["value"])] >= min_count))

    @staticmethod
    def _cells_of(values: pa.ChunkedArray) -> np.ndarray:
        """(v,) uint64: the same for equal values, and spread evenly."""
        if pa.types.is_integer(values.type):
            numbers = pc.fill_null(values, 0).to_numpy()
        else:
            numbers = _text_hashes(values.combine_chunks())
        return splitmix64(numbers, 0) >> np.uint64(64 - SKETCH_BITS)


def _text_hashes(texts: pa.Array) -> np.ndarray:
    """(n,) uint64: sums of the bytes, each times a random number that goes with its place in the text.

    M. Dietzfelbinger 1996, Universal Hashing and k-Wise Independent Random Variables via Integer Arithmetic
    without Primes. After HASHED_BYTES bytes the random numbers repeat, which costs collisions and no more.
    """
    texts = pa.concat_arrays([texts.cast(pa.large_binary()), pa.array([], pa.large_binary())])  # without an offset
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[: len(texts) + 1]
    text = np.frombuffer(data or b"", dtype=np.uint8)[ends[0] : ends[-1]]
    places = np.arange(len(text)) - np.repeat(ends[:-1] - ends[0], np.diff(ends))
    numbers = splitmix64(np.arange(HASHED_BYTES), 1)[places % HASHED_BYTES]
    sums = np.zeros(len(text) + 1, dtype=np.uint64)
    np.cumsum((text + np.uint64(1)) * numbers, out=sums[1:])
    return sums[ends[1:] - ends[0]] - sums[ends[:-1] - ends[0]]


def _check_parts(tally: np.ndarray, raw: Path) -> None:
    for part, (zeros, ones) in zip(PARTS, tally, strict=True):
        if not zeros or not ones:
            raise BadData(
                f"part {part!r} would get {zeros:,} rows of label 0 and {ones:,} of label 1, where it needs both",
                file=raw / "table.parquet",
                remedy=f"raise encode.split.{part} in params.yaml, or give more rows",
            )


def _write_vocabulary(vocabularies: Iterable[tuple[_Feature, pa.Table]], path: Path) -> Schema:
    fields = []
    kinds = {"feature": pa.string(), "value": pa.string(), "count": pa.int64(), "id": pa.int32()}
    with pq.ParquetWriter(path, pa.schema(kinds.items())) as writer:
        for feature, known in vocabularies:
            fields.append(Field(feature.name, len(known) + 1, feature.width))
            if len(known):
                names = pa.array([feature.name]).take(pa.array(np.zeros(len(known), dtype=np.int8)))
                known = known.append_column("feature", names).select(list(kinds))
                writer.write_table(known.cast(writer.schema))
    total = sum(field.cardinality for field in fields)
    if total >= 2**31:
        raise ValueError(f"{total:,} values are more than 2**31 - 1; raise encode.min_count in params.yaml")
    return Schema(tuple(fields))


class _Array:
    """A .npy file of known shape, written in pieces."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.dtype = np.dtype(dtype)
        path.parent.mkdir(exist_ok=True)
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
        self._write(header.getbuffer())

    def __enter__(self) -> _Array:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def sha256(self) -> str:
        return self.digest.hexdigest()

    def append(self, array: np.ndarray) -> None:
        if array.size:
            self._write(np.ascontiguousarray(array, dtype=self.dtype).data.cast("B"))

    def _write(self, data: memoryview) -> None:
        self.file.write(data)
        self.digest.update(data)
