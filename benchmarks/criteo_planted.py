"""A planted click log in the shape of `benchmarks.criteo_file`: 13 counts and 26 fields of power-law popularity.

Every value of a field has a weight and a vector, which follow from the value, the field and the seed alone, so millions
of values take no memory. The logit of a click is

    bias + sum of the weights + sum over blocks of fields of the inner products of all pairs of fields of the block.

The vectors of a block have their own coordinates, so tables of ``sum of the blocks' ranks`` = 16 columns can hold the
truth of all fields. Weights and vectors are drawn alike for frequent and for rare values. So rare values matter as much
as frequent ones for the rows in which they occur, as far as few rows can teach them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.criteo_file import BLANK_HASHES, BLANK_NUMBERS, CARDINALITIES, CHUNK_ROWS, EXPONENT, SCALES
from pipeline.encoding.buckets import log_square
from pipeline.encoding.parts import splitmix64
from pipeline.sources.source import CATEGORICAL, LABEL, NUMERIC, ORACLE, Source

NUMBERS = tuple(f"I{i}" for i in range(1, 14))
VALUES = tuple(f"C{i}" for i in range(1, 27))
NAMES = NUMBERS + VALUES
BLOCKS: tuple[tuple[int, tuple[str, ...]], ...] = (  # rank of the block, its fields
    (6, ("C3", "C12", "C21", "C1", "C9", "C13")),
    (4, ("C16", "C4", "C10", "C15", "I5")),
    (4, ("C24", "C26", "C7", "C18", "C2", "I6")),
    (2, ("C1", "C5", "C11", "C19", "C20", "C25", "I1", "I7", "I11")),
)
RICH = ("C3", "C4", "C12", "C16", "C21", "C24")  # the fields with the most values
FIRST_ORDER = {name: 0.9 if name in RICH else 0.15 for name in NAMES}  # standard deviations of weights
PAIRS = 1.3  # standard deviation of the sum of all inner products, beside weights of `FIRST_ORDER`
LOGIT = 1.75  # standard deviation of the logit
CLICK_RATE = 0.256
POOL = 1 << 16  # rows of random numbers; the numbers of a value are the sum of two of them
CALIBRATION_ROWS = 100_000


def source(rows: int, seed: int = 0) -> Source:
    """The log, to be ingested and encoded like any other; it has the true probabilities.

    Its facts are the planted ``ranks`` of all fields, 0 to 8; the ``blocks``, each a list of the fields that interact;
    and the ``fields`` with most values.

    Args:
        rows: number of rows. The first rows of a longer log are the same.
        seed: of weights, vectors and rows.
    """
    kinds = dict.fromkeys(NUMBERS, NUMERIC) | dict.fromkeys(VALUES, CATEGORICAL)
    facts: dict[str, Any] = {"ranks": ranks(), "blocks": [list(fields) for _, fields in BLOCKS], "rich": list(RICH)}
    return Source(kinds, World(seed).batches(rows), f"planted clicks, {seed=}", {"min_count": 2}, facts)


def ranks() -> dict[str, int]:
    """The number of coordinates of each field."""
    return {name: sum(rank for rank, fields in BLOCKS if name in fields) for name in NAMES}


class World:
    """The planted model, and the distribution of the values.

    Args:
        seed: of all that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = np.random.default_rng([seed, 0])
        self.pool = rng.standard_normal((POOL, 1 + max(ranks().values())), dtype=np.float32) / np.float32(2**0.5)
        drawn = self.draw(CALIBRATION_ROWS, np.random.default_rng([seed, 1]))[0]
        first_order, pairs = self.effects(drawn)
        self.of_pairs = PAIRS / pairs.std()
        logits = first_order + self.of_pairs * pairs
        self.factor = LOGIT / logits.std()
        self.bias = _bias(self.factor * logits, CLICK_RATE)

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows, in batches that `Source` describes."""
        for number, start in enumerate(range(0, rows, CHUNK_ROWS)):
            rng = np.random.default_rng([self.seed, 2, number])
            values, columns = self.draw(CHUNK_ROWS, rng)
            chance = self.probability(values)
            labels = (rng.random(CHUNK_ROWS) < chance).astype(np.uint8)
            columns |= {LABEL: pa.array(labels), ORACLE: pa.array(chance)}
            yield pa.RecordBatch.from_pydict(columns).slice(0, rows - start)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, pa.Array]]:
        """Of each field, by name: the values that matter (n,) int64, and the column of the log (n,).

        The k-th most frequent value of a categorical field is k, from 1. What matters of a count is its bucket of
        `log_square`. 0 is a missing value.
        """
        values, columns = {}, {}
        for name, blank, scale in zip(NUMBERS, BLANK_NUMBERS, SCALES, strict=True):
            counts = np.floor(rng.lognormal(scale, 1.5, n)).astype(np.int64) - (3 if name == "I2" else 0)
            missing = rng.random(n) < blank
            values[name] = np.where(missing, 0, log_square(counts) + 4)  # I2 goes down to -3
            columns[name] = pa.array(counts, mask=missing)
        for name, number, blank in zip(VALUES, CARDINALITIES, BLANK_HASHES, strict=True):
            power = 1 - EXPONENT  # the inverse of the distribution function of a continuous power law on 1..number + 1
            drawn = ((1 + rng.random(n) * ((number + 1) ** power - 1)) ** (1 / power)).astype(np.int64)
            missing = rng.random(n) < blank
            values[name] = np.where(missing, 0, drawn)
            columns[name] = pa.array(drawn, mask=missing)
        return values, columns

    def weights(self, name: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (n,) of a field -> their weights (n,) and vectors (n, rank), float32, before they are scaled."""
        hashes = splitmix64(values, (self.seed << 8) + NAMES.index(name))
        one, other = hashes % POOL, (hashes >> np.uint64(32)) % POOL
        width = 1 + ranks()[name]
        numbers = self.pool[one, :width] + self.pool[other, :width]
        return np.float32(FIRST_ORDER[name]) * numbers[:, 0], numbers[:, 1:]

    def effects(self, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Sums of all weights and of all inner products of rows, both (n,) float64; see `draw` for the argument."""
        n = len(next(iter(values.values())))
        first_order, pairs = np.zeros(n), np.zeros(n)
        total = [np.zeros((n, rank), np.float32) for rank, _ in BLOCKS]
        for name, drawn in values.items():
            weights, vectors = self.weights(name, drawn)
            first_order += weights
            start = 0
            for of_block, (rank, fields) in zip(total, BLOCKS, strict=True):
                if name in fields:
                    own = vectors[:, start : start + rank]
                    of_block += own
                    pairs -= 0.5 * np.square(own).sum(1)
                    start += rank
        for of_block in total:
            pairs += 0.5 * np.square(of_block).sum(1)
        return first_order, pairs

    def probability(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n,) float64, of a click; see `draw` for the argument."""
        first_order, pairs = self.effects(values)
        chance: np.ndarray = 1 / (1 + np.exp(-self.bias - self.factor * (first_order + self.of_pairs * pairs)))
        return chance


def _bias(logits: np.ndarray, rate: float) -> float:
    """The number to add to logits so that the mean probability is ``rate``."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-logits - middle))).mean() < rate else (low, middle)
    return (low + high) / 2
