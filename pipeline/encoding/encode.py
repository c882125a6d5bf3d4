"""Turns the raw table into feature ids, in two passes: count the training rows' values, then look all values up.

Whatever is learned from data - which values are known, their order, the edges of buckets - is learned from the
rows of part ``train``. The result is the same, byte for byte, whatever the size of the batches read.

Threads share the work, fields in the first pass and row groups in the second. Memory does not grow with the rows,
but for one bit a row, nor with values that are too rare for an id.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.schema import Field, Schema
from pipeline.encoding.arrays import ArrayFile
from pipeline.encoding.buckets import quantile_edges
from pipeline.encoding.parts import PARTS, TRAIN, Parts, check_parts
from pipeline.encoding.raw_table import RawTable
from pipeline.encoding.threads import in_order, progress_bar, thread_pool
from pipeline.encoding.vocabulary import Feature, write_vocabulary
from pipeline.sources.raw import GROUP_ROWS
from pipeline.sources.source import CATEGORICAL, LABEL, ORACLE, TIME, BadData

MIN_COUNT = 2  # where neither the settings nor the data set say otherwise
MAX_BAG = 8


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

    table = RawTable(raw / "table.parquet", [name for name, kind in kinds.items() if kind == CATEGORICAL], batch_rows)

    def batches(columns: Sequence[str], title: str) -> Iterator[tuple[int, pa.RecordBatch]]:
        with progress_bar(title, facts["rows"], " rows") as progress:
            for first, batch in table.batches(columns):
                yield first, batch
                progress.update(len(batch))

    with thread_pool() as threads:
        split = Parts(settings.split["by"], settings.shares, settings.seed, batches)
        edges: dict[str, np.ndarray] = {}
        if settings.numeric == "quantiles":
            edges = quantile_edges(batches, split, kinds, settings.buckets, settings.seed)
        columns = {name: Feature(name, kind, edges.get(name), max_bag) for name, kind in kinds.items()}

        tally = np.zeros((len(PARTS), 2), dtype=np.int64)  # rows by part and label
        train = []  # for each batch, a bit for each row
        for first, batch in batches([LABEL, *split.columns], "(splitting)"):
            part = split(first, batch)
            np.add.at(tally, (part, batch[LABEL].to_numpy()), 1)
            train.append(np.packbits(part == TRAIN))
        check_parts(tally, raw)

        def learned(feature: Feature) -> pa.Table:
            def pairs() -> Iterator[tuple[pa.Array, np.ndarray]]:
                for (_, batch), bits in zip(table.batches([feature.name]), train, strict=True):
                    yield batch[feature.name], np.unpackbits(bits, count=len(batch)).view(bool)

            return feature.learn(pairs, min_count)

        folder.mkdir(parents=True)
        with progress_bar("(counting)", len(columns), " fields") as progress:
            known = in_order(threads, learned, columns.values(), progress)
            schema = write_vocabulary(zip(columns.values(), known, strict=True), folder / "vocabulary.parquet")
        sizes = {part: int(n) for part, n in zip(PARTS, tally.sum(axis=1), strict=True)}
        with contextlib.ExitStack() as stack:
            arrays = {
                f"{part}/{name}.npy": stack.enter_context(ArrayFile(folder / part / f"{name}.npy", dtype, shape))
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

            with progress_bar("(writing)", table.groups, " row groups") as progress:
                for pieces in in_order(threads, encoded, range(table.groups), progress):
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
        feature = Feature(name, kind, None, max_bag)
        ids = np.empty((feature.width, len(table)), dtype=np.int32)
        feature.appear(table[name].combine_chunks().take(pa.array(order)), ids)
        fields.append(Field(name, int(ids.max()) + 1, feature.width))
        slots.append(ids)
    labels = table[LABEL].to_numpy()[order]
    return Schema(tuple(fields)), np.ascontiguousarray(np.concatenate(slots).T), labels
