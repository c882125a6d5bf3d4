"""What an approximate index of a model's items finds, takes and saves, beside the exact search."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.interactions import ITEM
from pipeline.embeddings.cost import bytes_per_field, cost
from pipeline.embeddings.mixed import MixedTables, is_plain
from pipeline.models.nearest import LeftOut, Search, nearest
from pipeline.models.retriever import Retriever
from pipeline.scoring.index import Index
from pipeline.scoring.ranker import Ranker

EXACT = "exact"
USERS, SEED = 1000, 0  # users of whom the recall is measured, and how they are drawn
BATCH = 2000  # queries that are answered together
ALONE, REPEATS = 200, 5  # queries that are timed one by one; rounds of a whole batch


@dataclass(frozen=True)
class Measured:
    """A search, measured.

    Args:
        name: `EXACT`, or the index as it was asked for.
        recall: the share of the k best items that it finds, the mean over the users.
        alone, together: median milliseconds of a query that is answered alone, and in a batch of `BATCH`.
        seconds: that the index took to build.
        bytes: of the index; of the float32 item vectors for the exact search.
    """

    name: str
    recall: float
    alone: float
    together: float
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Compared:
    """Searches of the same items by the same model.

    Args:
        k: items of a user.
        users: of whom the recall is measured.
        threads: of every search.
        tables: bytes of the model's tables.
        of_items: those of the items' fields; None for tables that fields share.
        rows: the exact search first.
    """

    k: int
    users: int
    threads: int
    tables: int
    of_items: int | None
    rows: Sequence[Measured]

    def lines(self) -> Iterator[str]:
        """A table, with what it is about."""
        items = "" if self.of_items is None else f", {self.of_items:,} of them of items"
        yield f"tables of the model: {self.tables:,} bytes{items}; {self.users:,} users, {self.threads} threads"
        head = (f"recall@{self.k}", "ms alone", f"ms in {BATCH:,}", "s to build", "bytes")
        names = [row.name for row in self.rows]
        wide = max(map(len, names))
        yield f"{'search':<{wide}}  {head[0]:>10}  {head[1]:>9}  {head[2]:>11}  {head[3]:>10}  {head[4]:>13}"
        for row in self.rows:
            cells = f"{row.recall:>10.4f}  {row.alone:>9.3f}  {row.together:>11.4f}  {row.seconds:>10.1f}"
            yield f"{row.name:<{wide}}  {cells}  {row.bytes:>13,}"


def compare(ranker: Ranker, k: int, indices: Sequence[Index]) -> Compared:
    """Measure indices on up to `USERS` users whom the model knows.

    The time of a query covers leaving out the items that its user knows, but not the computation of the vectors.

    Args:
        ranker: the model.
        k: items of a user.
        indices: they are built if they are not yet.

    Raises:
        ValueError: if k is below 1.
    """
    if k < 1:
        raise ValueError(f"--top: must be at least 1, got {k}")
    draw = np.random.default_rng(SEED).permutation(ranker.answered)[:USERS]
    asked = _Asked.of(ranker, draw, k)
    best, _ = asked.found(nearest)
    rows = [Measured(EXACT, 1.0, *asked.times(nearest), 0.0, asked.items.numel() * 4)]
    for index in indices:
        found, _ = asked.found(index)
        recall = float(np.mean([_share(*both) for both in zip(found, best, strict=True)]))
        rows.append(Measured(index.asked, recall, *asked.times(index), index.seconds, index.bytes))
    tables, of_items = _tables(ranker.model)
    return Compared(k, len(draw), torch.get_num_threads(), tables, of_items, rows)


def _share(found: np.ndarray, best: np.ndarray) -> float:
    """The share of the best items that is found; 1 if there are none."""
    best = best[best >= 0]
    return float(np.isin(best, found).mean()) if len(best) else 1.0


def _tables(model: Retriever) -> tuple[int, int | None]:
    """Bytes of all tables and of those of items, which are known where each field has rows of its own."""
    embedding = model.embedding
    every = cost(embedding.packed()).bytes
    if not is_plain(embedding):
        return every, None
    each = bytes_per_field(MixedTables, model.kept, embedding.dims, embedding.dim)
    return every, sum(each[field.name] for field in model.kept.fields if field.role == ITEM)


@dataclass(frozen=True)
class _Asked:
    """What a search is asked.

    Args:
        queries: (n, K).
        items: (I, K).
        left_out: see `pipeline.models.nearest.Search`.
        k: items of a query.
    """

    queries: Tensor
    items: Tensor
    left_out: LeftOut
    k: int

    @classmethod
    def of(cls, ranker: Ranker, users: np.ndarray, k: int) -> _Asked:
        """What `Ranker.best` asks for users (n,)."""
        parts: list[tuple[Tensor, Tensor, LeftOut]] = []

        def noted(queries: Tensor, items: Tensor, left_out: LeftOut, k: int) -> tuple[np.ndarray, np.ndarray]:
            parts.append((queries, items, left_out))
            return np.full((len(queries), 1), -1, np.int32), np.zeros((len(queries), 1), np.float32)

        for _ in ranker.best(users, k, noted):
            pass
        ends = np.cumsum([0, *(len(queries) for queries, _, _ in parts)])
        at = np.concatenate([own + begin for (_, _, (own, _)), begin in zip(parts, ends[:-1], strict=True)])
        numbers = np.concatenate([number for _, _, (_, number) in parts])
        return cls(torch.cat([queries for queries, _, _ in parts]), parts[0][1], (at, numbers), k)

    def found(self, search: Search) -> tuple[np.ndarray, np.ndarray]:
        return search(self.queries, self.items, self.left_out, self.k)

    def times(self, search: Search) -> tuple[float, float]:
        """See `Measured.alone` and `Measured.together`."""
        alone = [self._some(np.array([n])) for n in range(min(ALONE, len(self.queries)))]
        batch = self._some(np.arange(BATCH) % len(self.queries))
        batch.found(search)  # warms up
        return _median(alone, search), _median([batch] * REPEATS, search) / BATCH

    def _some(self, numbers: np.ndarray) -> _Asked:
        """Some of the queries, which may repeat."""
        at, items = self.left_out
        starts = np.searchsorted(at, np.arange(len(self.queries) + 1))
        own = [items[starts[n] : starts[n + 1]] for n in numbers]
        place = np.repeat(np.arange(len(numbers)), [len(some) for some in own])
        return _Asked(self.queries[torch.from_numpy(numbers)], self.items, (place, np.concatenate(own)), self.k)


def _median(asked: Sequence[_Asked], search: Search) -> float:
    """The median milliseconds of an answer."""
    times = []
    for one in asked:
        started = time.perf_counter()
        one.found(search)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1000
