"""Planted data: a click log with known right dimensions and a known best possible AUC.

Every value of a field has a latent vector with R coordinates. A field of rank r uses the first r of them, which are
standard normal; the others are zero. The logit of a click is the sum of the inner products of all pairs of fields, as
in a factorization machine. Values follow a Zipf distribution and some are missing. Two fields are numeric, one is
multi-valued, one is pure noise, and one is a copy of another.

All coordinates matter equally: if any field loses half of its coordinates, the logit loses 6.5 % of its variance. (If
all vectors had the same length, coordinates 5 to 8 of all fields together would carry only 1.3 % of the variance. That
is too little to learn from the rows, so the planted rank would not be the dimension that predicts best.)
`benchmarks/planted.py` measures the loss for each departure from the planted ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.sources.source import BAG, CATEGORICAL, LABEL, NUMERIC, ORACLE, Source
from pipeline.workflow.validation import Count, Rate, Whole

# name: (kind, cardinality, rank)
FIELDS: dict[str, tuple[str, int, int]] = {
    "user": (CATEGORICAL, 800, 8),
    "item": (CATEGORICAL, 600, 8),
    "campaign": (CATEGORICAL, 400, 8),
    "publisher": (CATEGORICAL, 400, 4),
    "device": (CATEGORICAL, 200, 4),
    "price": (NUMERIC, 24, 2),
    "age": (NUMERIC, 16, 1),
    "city": (CATEGORICAL, 400, 2),
    "browser": (CATEGORICAL, 200, 2),
    "zip": (CATEGORICAL, 600, 1),
    "tags": (BAG, 60, 2),
    "noise": (CATEGORICAL, 1000, 0),
}
COPY_OF = {"item_copy": "item"}
MOST_TAGS = 4
MISSING = {"device": 0.05, "age": 0.1, "city": 0.02}  # share of rows
BATCH_ROWS = 50_000


def read(
    path: Path,
    *,
    rows: Count = 300_000,
    seed: Whole = 0,
    exponent: Rate = 0.7,
    scale: Rate = 2.0,
    click_rate: Annotated[float, Field(gt=0, lt=1)] = 0.3,
) -> Source:
    """Events drawn from the planted model; no file is read.

    Args:
        path: not used.
        rows: number of events.
        seed: of the latent vectors and of the events.
        exponent: of the Zipf distribution: the k-th most frequent value has a probability proportional to
            k ** -exponent.
        scale: standard deviation of the logit.
        click_rate: approximate share of clicks.
    """
    world = _World(seed, exponent, scale, click_rate)
    facts: dict[str, Any] = {
        "ranks": {name: rank for name, (_, _, rank) in FIELDS.items()},
        "copies": dict(COPY_OF),
        "noise": ["noise"],
    }
    kinds = {name: kind for name, (kind, _, _) in FIELDS.items()} | {c: FIELDS[o][0] for c, o in COPY_OF.items()}
    return Source(
        kinds, world.batches(rows, seed), f"synthetic, {seed=}", {"min_count": 1, "max_bag": MOST_TAGS}, facts
    )


class _World:
    """The planted model: latent vectors, and the distribution of the values."""

    def __init__(self, seed: int, exponent: float, scale: float, click_rate: float) -> None:
        rng = np.random.default_rng([seed, 0])
        most = max(rank for _, _, rank in FIELDS.values())
        self.popularity: dict[str, np.ndarray] = {}
        self.vectors: dict[str, np.ndarray] = {}
        for name, (kind, cardinality, rank) in FIELDS.items():
            weights = np.arange(1, cardinality + 1) ** -exponent if kind == CATEGORICAL else np.ones(cardinality)
            self.popularity[name] = np.cumsum(weights / weights.sum())
            vectors = np.zeros((cardinality + 1, most))  # the last one is the vector of a missing value
            vectors[:, :rank] = rng.standard_normal((cardinality + 1, rank))
            if kind == BAG:
                vectors *= 1.6  # the average over a bag shortens the vector
            self.vectors[name] = vectors
        self.factor, self.shift = 1.0, 0.0
        drawn = self._draw(20_000, np.random.default_rng([seed, 1]))
        logits = self._logits(drawn)
        self.factor = scale / logits.std()
        self.shift = np.log(click_rate / (1 - click_rate)) - (logits * self.factor).mean()

    def batches(self, rows: int, seed: int) -> Iterator[pa.RecordBatch]:
        for number, start in enumerate(range(0, rows, BATCH_ROWS)):
            rng = np.random.default_rng([seed, 2, number])
            values = self._draw(min(BATCH_ROWS, rows - start), rng)
            chance = 1 / (1 + np.exp(-self._logits(values)))
            columns = {name: self._column(name, drawn, rng) for name, drawn in values.items()}
            columns |= {copy: columns[original] for copy, original in COPY_OF.items()}
            columns[LABEL] = pa.array((rng.random(len(chance)) < chance).astype(np.uint8))
            columns[ORACLE] = pa.array(chance)
            yield pa.RecordBatch.from_pydict(columns)

    def _draw(self, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Value numbers of each field, by name: (n,), or (n, MOST_TAGS) for a bag, where -1 is an empty slot."""
        values = {}
        for name, (kind, cardinality, _) in FIELDS.items():
            shape = (rows, MOST_TAGS) if kind == BAG else (rows,)
            drawn = np.searchsorted(self.popularity[name], rng.random(shape)).clip(max=cardinality - 1)
            if kind == BAG:
                drawn[np.arange(MOST_TAGS) >= rng.integers(1, MOST_TAGS + 1, (rows, 1))] = -1
                ordered = np.sort(drawn, axis=1)  # a tag counts once
                ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
                drawn = ordered
            elif name in MISSING:
                drawn[rng.random(rows) < MISSING[name]] = cardinality
            values[name] = drawn
        return values

    def _logits(self, values: dict[str, np.ndarray]) -> np.ndarray:
        embedded = []
        for name, drawn in values.items():
            vectors = self.vectors[name]
            if drawn.ndim == 2:
                there = (drawn >= 0)[..., None]
                embedded.append((vectors[drawn] * there).sum(1) / there.sum(1))
            else:
                embedded.append(vectors[drawn])
        total = np.sum(embedded, axis=0)
        pairs = 0.5 * (np.square(total) - np.sum(np.square(embedded), axis=0)).sum(1)
        logits: np.ndarray = self.shift + self.factor * pairs
        return logits

    def _column(self, name: str, drawn: np.ndarray, rng: np.random.Generator) -> pa.Array:
        kind, cardinality, _ = FIELDS[name]
        if kind == BAG:
            there = drawn >= 0
            offsets = np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.int32)
            words = pa.array([f"{name}_{i}" for i in range(cardinality)])
            return pa.ListArray.from_arrays(pa.array(offsets), words.take(pa.array(drawn[there])))
        missing = drawn == cardinality
        if kind == NUMERIC:
            # The log-square rule puts numbers from a little above exp(sqrt(k)) into bucket k.
            edges = np.exp(np.sqrt(np.arange(1, cardinality + 2)))
            low, high = edges[np.minimum(drawn, cardinality - 1)], edges[np.minimum(drawn, cardinality - 1) + 1]
            return pa.array(low + (high - low) * (0.01 + 0.98 * rng.random(len(drawn))), mask=missing)
        words = pa.array([f"{name}_{i}" for i in range(cardinality)])
        return words.take(pa.array(drawn, mask=missing))
