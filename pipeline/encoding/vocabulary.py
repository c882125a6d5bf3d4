"""The vocabulary of a field: learned from training rows, then used to look up the values of all rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.schema import PADDING, UNKNOWN, Field, Schema
from pipeline.encoding.buckets import floats, log_square
from pipeline.encoding.counting import Sketch, summed
from pipeline.sources.source import BAG, NUMERIC

RICH_VALUES = 1 << 18  # the first pass reads a field with more values twice, so that rare values take no memory


@dataclass(frozen=True)
class Counts:
    """What became of the values of a field; those of several batches are added.

    Args:
        values: their number.
        unknown: those that have no id.
        cut: those that have one, but no slot, because their bag is too long.
        cut_rows: rows with such values.
    """

    values: int = 0
    unknown: int = 0
    cut: int = 0
    cut_rows: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


Cut = dict[str, dict[str, int]]  # by bag, how many known values of how many rows had no slot


def cut_of(counts: Mapping[str, Counts]) -> Cut:
    """What was cut from bags, by their names; JSON types."""
    return {name: {"values": of_field.cut, "rows": of_field.cut_rows} for name, of_field in counts.items()}


def cut_sentences(cut: Cut, whose: Mapping[str, str] | None = None) -> list[str]:
    """A sentence for each bag from which values were cut.

    Args:
        cut: what was cut.
        whose: of fields that describe something else than rows, what they describe, e.g. "items".
    """
    whose = dict.fromkeys(cut, "rows") | dict(whose or {})
    return [
        f"bag {name!r}: cut {counts['values']:,} values of {counts['rows']:,} {whose[name]}, because a bag has too few "
        "slots"
        for name, counts in cut.items()
        if counts["rows"]
    ]


class Vocabulary:
    """The vocabulary of one field: learned in the first pass, used in the second.

    Args:
        name: of the field.
        kind: of the field.
        edges: of a numeric field's buckets; None for `log_square`.
        max_bag: slots of a bag.
    """

    def __init__(self, name: str, kind: str, edges: np.ndarray | None, max_bag: int) -> None:
        self.name, self.kind, self.edges = name, kind, edges
        self.width = max_bag if kind == BAG else 1
        self.values: pa.Array  # the known values; values[i] has id i + 1
        self.counts: np.ndarray  # training rows with each known value
        self.distinct: int  # values of the training rows, known or not; buckets of numbers; above RICH_VALUES about
        self.missing: bool  # whether a missing value is among them
        self.largest: int  # training rows with the most frequent one

    def learn(self, batches: Callable[[], Iterator[tuple[pa.Array, np.ndarray]]], min_count: int) -> pa.Table:
        """Number the values that are frequent enough in training rows; return a table of value, count and id.

        Args:
            batches: returns pieces (n,) of the field's column, each with a mask (n,) bool of the training rows.
            min_count: least number of training rows with a value.
        """
        tables = (self.counted(column, train) for column, train in batches())
        counts = summed(tables, RICH_VALUES)
        self.distinct = len(counts)
        if self.is_rich:
            sketch = Sketch()
            for table in itertools.chain([counts], tables):
                sketch.add(table)
            self.distinct = sketch.distinct()
            counts = summed(sketch.frequent(self.counted(column, train), min_count) for column, train in batches())
        self.missing = counts["value"].null_count > 0
        self.largest = pc.max(counts["count"]).as_py() or min(1, self.distinct)  # of rare values, one occurs
        return self.number(counts.filter(pc.greater_equal(counts["count"], min_count)))

    @property
    def is_rich(self) -> bool:
        """Whether the training rows have so many values that a sketch estimates their number."""
        return self.distinct > RICH_VALUES

    def number(self, frequent: pa.Table) -> pa.Table:
        """Number the values of a table of value and count, the most frequent first; return it with their ids."""
        order = pc.sort_indices(frequent, sort_keys=[("count", "descending"), ("value", "ascending")])
        frequent = frequent.take(order)
        self.values = frequent["value"].combine_chunks()
        self.counts = frequent["count"].to_numpy()
        return frequent.append_column("id", pa.array(np.arange(1, len(frequent) + 1, dtype=np.int32)))

    def look_up(self, column: pa.Array, slots: np.ndarray) -> Counts:
        """Fill slots (width, n) int32 with the ids of n rows."""
        rows, codes, values = self._coded(column)
        return self._fill(slots, rows, self._ids_of(values).take(codes))

    def appear(self, column: pa.Array, slots: np.ndarray) -> Counts:
        """Fill slots (width, n) int32 with ids from 1, in the order of the first appearance of values."""
        rows, codes, _ = self._coded(column)
        _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
        rank = np.empty(len(firsts), dtype=np.int32)
        rank[np.argsort(firsts)] = np.arange(1, len(firsts) + 1)
        return self._fill(slots, rows, rank[inverse])

    def _fill(self, slots: np.ndarray, rows: np.ndarray | None, ids: np.ndarray) -> Counts:
        """Put ``ids[i]`` into the next free slot of row ``rows[i]``; see `_coded` for ``rows``."""
        values, unknown = len(ids), int(np.count_nonzero(ids == UNKNOWN))
        if rows is None:
            slots[0] = ids
            return Counts(values, unknown)
        rows, ids = rows[ids != UNKNOWN], ids[ids != UNKNOWN]
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)  # position among the known values of the row
        cut, cut_rows = int(np.count_nonzero(rank >= self.width)), int(np.count_nonzero(rank == self.width))
        rows, ids, rank = (array[rank < self.width] for array in (rows, ids, rank))
        slots[:] = PADDING
        slots[0] = UNKNOWN
        slots[rank, rows] = ids
        return Counts(values, unknown, cut, cut_rows)

    def _ids_of(self, values: pa.Array) -> np.ndarray:
        """(v,) int32: ids of distinct values. The smaller of vocabulary and ``values`` is hashed."""
        ids = np.full(len(values), UNKNOWN, dtype=np.int32)
        if len(self.values) <= len(values):
            places = pc.index_in(values, self.values)
            ids[places.is_valid().to_numpy(zero_copy_only=False)] = places.drop_null().to_numpy() + 1
        else:
            places = pc.index_in(self.values, values)
            ids[places.drop_null().to_numpy()] = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False)) + 1
        return ids

    def counted(self, column: pa.Array, train: np.ndarray) -> pa.Table:
        """The distinct values of the training rows, and the number of these rows with each."""
        rows, codes, values = self._coded(column)
        counts = np.bincount(codes.take(np.flatnonzero(train if rows is None else train[rows])), minlength=len(values))
        there = np.flatnonzero(counts)
        return pa.table({"value": values.take(pa.array(there)), "count": counts[there]})

    def _coded(self, column: pa.Array) -> tuple[np.ndarray | None, np.ndarray, pa.Array]:
        """(rows, codes, values): value ``values[codes[i]]`` occurs in row ``rows[i]``, rows ascending.

        ``rows`` is None if every row has exactly one value, which may be null. Nulls and repetitions in a bag are
        omitted.
        """
        if self.kind == BAG:
            return self._coded_bags(column)
        if self.kind == NUMERIC and pa.types.is_integer(column.type):  # integers repeat; each is bucketed once
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
        numbers = floats(column)
        missing = np.isnan(numbers)
        numbers = np.where(missing, 0, numbers)
        buckets = log_square(numbers) if self.edges is None else np.searchsorted(self.edges, numbers, side="right")
        return pa.array(buckets, mask=missing)

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


def write_vocabulary(
    vocabularies: Iterable[tuple[Vocabulary, pa.Table]], path: Path, roles: Mapping[str, str] | None = None
) -> Schema:
    """Write the tables that `Vocabulary.learn` returned as one Parquet file.

    Args:
        vocabularies: each with its table.
        path: of the file.
        roles: of the fields of interactions, by name.

    Returns:
        The schema of the fields.

    Raises:
        ValueError: if no value has an id, or if there are more values than an id can number.
    """
    fields = []
    kinds = {"feature": pa.string(), "value": pa.string(), "count": pa.int64(), "id": pa.int32()}
    with pq.ParquetWriter(path, pa.schema(kinds.items())) as writer:
        for vocabulary, known in vocabularies:
            fields.append(
                Field(vocabulary.name, len(known) + 1, vocabulary.width, (roles or {}).get(vocabulary.name, ""))
            )
            if len(known):
                names = pa.array([vocabulary.name]).take(pa.array(np.zeros(len(known), dtype=np.int8)))
                known = known.append_column("feature", names).select(list(kinds))
                writer.write_table(known.cast(writer.schema))
    total = sum(field.cardinality for field in fields)
    if total == len(fields):
        raise ValueError(
            "no value of any field occurs in enough training rows to get an id; lower encode.min_count in params.yaml, "
            "or give more rows"
        )
    if total >= 2**31:
        raise ValueError(f"there must be at most 2**31 - 1 ids, got {total:,}; raise encode.min_count in params.yaml")
    return Schema(tuple(fields))


def read_vocabulary(path: Path) -> dict[str, pa.Array]:
    """The known values of every field that has any, as texts, in the order of their ids; null is a missing value."""
    pieces: dict[str, list[pa.Array]] = {}
    with pq.ParquetFile(path, read_dictionary=["feature"]) as file:
        for group in range(file.num_row_groups):  # each holds the values of one field
            rows = file.read_row_group(group, columns=["feature", "value"])
            pieces.setdefault(rows["feature"][0].as_py(), []).extend(rows["value"].chunks)
    return {name: pa.concat_arrays(values) for name, values in pieces.items()}
