"""Random ids in the shape of Criteo's public data, for measurements of steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.data.batches import Batch
from pipeline.data.schema import Field, Schema

NUMERIC = (49, 101, 126, 45, 223, 118, 84, 76, 95, 9, 30, 40, 75)
CATEGORICAL = (
    *(1445, 553, 187700, 140600, 305, 19, 11884, 632, 3, 47200, 5160, 186900, 3174),
    *(26, 11043, 177700, 10, 4618, 2003, 4, 184400, 17, 15, 63300, 85, 48900),
)
FIELDS, VALUES = 39, 1_086_810
EXPONENT = 1.05  # of the Zipf distribution: a batch of 2,000 rows looks up about 15,000 distinct rows of the tables


def criteo(values: int = VALUES, fields: int = FIELDS) -> Schema:
    """F fields with V values in all, in about the proportions of Criteo's Kaggle data at a threshold of 10."""
    sizes = np.array([*NUMERIC, *CATEGORICAL])[np.arange(fields) % FIELDS].astype(float)
    for _ in range(20):  # every field keeps at least two values
        sizes = np.maximum(2, sizes * values / sizes.sum())
    return Schema(tuple(Field(f"C{f + 1}", int(size)) for f, size in enumerate(sizes)))


def draw_batches(schema: Schema, batch_size: int, number: int, seed: int = 0) -> list[Batch]:
    """Batches of ids (B, F) int32 that follow a Zipf distribution, with labels (B,) float32, a quarter of them 1."""
    rng = np.random.default_rng(seed)
    ids = np.empty((number * batch_size, len(schema)), dtype=np.int32)
    for f, cardinality in enumerate(schema.cardinalities):
        popularity = np.cumsum(np.arange(1, cardinality + 1) ** -EXPONENT)
        ids[:, f] = np.searchsorted(popularity, rng.random(len(ids)) * popularity[-1]).clip(max=cardinality - 1)
    labels = (rng.random(len(ids)) < 0.25).astype(np.float32)
    pairs = zip(np.split(ids, number), np.split(labels, number), strict=True)
    return [Batch(torch.from_numpy(i), torch.from_numpy(y)) for i, y in pairs]


def distinct_rows(schema: Schema, batches: Sequence[Batch]) -> float:
    """Distinct table rows that a batch looks up, on average."""
    return float(np.mean([len(np.unique(batch.ids.numpy() + schema.first_rows)) for batch in batches]))


def describe(schema: Schema, batches: Sequence[Batch], dim: int) -> str:
    """The shape of the measured batches, in one line."""
    return (
        f"{len(schema)} fields, {schema.num_rows:,} values, D = {dim}, batch {len(batches[0].labels):,} "
        f"({distinct_rows(schema, batches):,.0f} distinct rows)."
    )
