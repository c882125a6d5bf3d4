"""Ids of the shape of a public data set, without its data: what a benchmark of steps is run on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.data.schema import Field, Schema

NUMERIC = (49, 101, 126, 45, 223, 118, 84, 76, 95, 9, 30, 40, 75)
CATEGORICAL = (
    *(1445, 553, 187700, 140600, 305, 19, 11884, 632, 3, 47200, 5160, 186900, 3174),
    *(26, 11043, 177700, 10, 4618, 2003, 4, 184400, 17, 15, 63300, 85, 48900),
)
EXPONENT = 1.05  # of the zipf distribution: a batch of 2,000 rows touches about 15,000 rows of the tables


def criteo(values: int = 1_086_810, fields: int = 39) -> Schema:
    """F fields with V values, in about the proportions of Criteo's Kaggle data at a threshold of 10 (39, 1.09 M)."""
    sizes = np.array([*NUMERIC, *CATEGORICAL])[np.arange(fields) % 39].astype(float)
    for _ in range(20):  # the small fields keep two values at least
        sizes = np.maximum(2, sizes * values / sizes.sum())
    return Schema(tuple(Field(f"C{f + 1}", int(size)) for f, size in enumerate(sizes)))


def batches(schema: Schema, batch_size: int, number: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches (ids (B, F) int32, labels (B,) float32): zipf-distributed values, a quarter of clicks."""
    rng = np.random.default_rng(seed)
    ids = np.empty((number * batch_size, len(schema)), dtype=np.int32)
    for f, cardinality in enumerate(schema.cardinalities):
        popularity = np.cumsum(np.arange(1, cardinality + 1) ** -EXPONENT)
        ids[:, f] = np.searchsorted(popularity, rng.random(len(ids)) * popularity[-1]).clip(max=cardinality - 1)
    labels = (rng.random(len(ids)) < 0.25).astype(np.float32)
    pairs = zip(np.split(ids, number), np.split(labels, number), strict=True)
    return [(torch.from_numpy(i), torch.from_numpy(y)) for i, y in pairs]


def describe(schema: Schema, batches: list[tuple[Tensor, Tensor]], dim: int) -> str:
    """What is measured on, in a sentence."""
    return (
        f"{len(schema)} fields, {schema.num_rows:,} values, D = {dim}, batch {len(batches[0][1]):,} "
        f"({touched(schema, batches):,.0f} distinct rows)."
    )


def touched(schema: Schema, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Distinct table rows of a batch, on average."""
    return float(np.mean([len(np.unique(ids.numpy() + schema.first_rows)) for ids, _ in batches]))
