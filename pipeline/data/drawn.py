"""Batches of interactions, each with items that are drawn at random to stand for all that a user did not choose."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import gammaln

from pipeline.data.batches import Batch, Batches, Drawn
from pipeline.data.interactions import ITEM_COLUMN, QUERY, USER_COLUMN, Interactions
from pipeline.data.split import PARTS, Split


class DrawnBatches(Batches):
    """Batches of whole queries, with drawn items. What is drawn depends on the seed, the epoch and the position alone.

    All rows of a query are in one batch, so that its vector is computed once. Without histories, all rows of a user are
    one query. A batch has about ``batch_size`` rows, and at least one query.

    Items are drawn uniformly from those with training rows: a model learns nothing about the others, and to push them
    down would be wrong.

    Args:
        split: rows of interactions; they are read into memory.
        batch_size: rows of a batch, on average.
        seed: of the order of the queries in each epoch and of the draws; without one, the queries stay in order, and
            the draws are those of seed 0.
        shared: number of items that all rows of a batch share. If it is at least the number of items, all items are
            taken, each once.
        own: number of items for each row, none of which the row's user knows (unless the user knows nearly all).
        with_batch: whether the items of the batch are candidates, too; this only enters ``chances``.
        known: whether the items that users know, from these parts and the parts before them, are passed on.

    Raises:
        ValueError: if the rows are no interactions, there are none, or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int | None = None,
        *,
        shared: int = 0,
        own: int = 0,
        with_batch: bool = False,
        known: bool = True,
    ) -> None:
        super().__init__(split, batch_size, seed)
        if split.interactions is None:
            raise ValueError("the rows must be interactions of users and items")
        self.interactions: Interactions = split.interactions
        self.rows, self.starts = _by_query(split, self.interactions)
        queries = len(self.starts) - 1
        number = min(len(self), queries)
        self._edges = [queries * i // number for i in range(number + 1)]
        self.bounds = self.starts[self._edges].tolist()
        self.pairs = self.interactions.pairs(*PARTS[: 1 + max(map(PARTS.index, split.parts))])
        self.shared, self.own, self.known = shared, own, known
        counts = np.bincount(self.rows[:, ITEM_COLUMN], minlength=len(self.interactions.items))
        self.drawable = np.flatnonzero(counts)
        self.every = shared >= len(self.drawable)
        self.chances = torch.from_numpy(self._chances(counts, with_batch))
        self._keys = self.pairs.users * np.int64(len(counts)) + self.pairs.items
        self._permuted: tuple[int, np.ndarray] | None = None  # epoch, queries

    def _chances(self, counts: np.ndarray, with_batch: bool) -> np.ndarray:
        """(I,) the log of each item's probability to be a candidate."""
        absent = np.zeros(len(counts))  # log of the probability not to be one
        with np.errstate(divide="ignore"):
            if with_batch:
                absent += self._outside()
            if self.shared:
                chance = 1 / len(self.drawable)
                absent[self.drawable] += -np.inf if self.every else self.shared * np.log1p(-chance)
        chances: np.ndarray = np.log(np.maximum(-np.expm1(absent), np.finfo(np.float32).tiny)).astype(np.float32)
        return chances

    def _outside(self) -> np.ndarray:
        """(I,) the log of each item's probability to be in no row of a batch, which has its queries without
        replacement: that of the hypergeometric distribution."""
        items, queries = len(self.interactions.items), len(self.starts) - 1
        of_row = np.repeat(np.arange(queries), np.diff(self.starts))
        having = np.bincount(np.unique(of_row * items + self.rows[:, ITEM_COLUMN]) % items, minlength=items)
        others, size = queries - having, queries / len(self)
        outside: np.ndarray = gammaln(others + 1) + gammaln(queries - size + 1) - gammaln(queries + 1)
        return np.where(others >= size, outside - gammaln((others - size).clip(min=0) + 1), -np.inf)

    def take(self) -> Batch:
        """The next batch; see `Batches.take`."""
        epoch, position = self.epoch, self.position
        self.epoch, self.position = divmod(epoch * len(self) + position + 1, len(self))
        rng = np.random.default_rng([self.seed or 0, epoch, 1 + position])
        queries = self._epoch_order(epoch)[self._edges[position] : self._edges[position + 1]]
        sizes = self.starts[queries + 1] - self.starts[queries]
        first = np.cumsum(sizes) - sizes
        places = np.repeat(self.starts[queries] - first, sizes) + np.arange(sizes.sum())
        rows = self.rows[places]
        users = rows[:, USER_COLUMN].astype(np.int64)
        if self.own:
            numbers = self._unknown(rng, users)
        elif self.every:
            numbers = self.drawable
        else:
            numbers = self.drawable[rng.integers(len(self.drawable), size=self.shared)]
        known = np.stack(self.pairs.of_users(users[first])) if self.known else np.zeros((2, 0), np.int64)
        of_row = np.repeat(np.arange(len(queries)), sizes)
        drawn = Drawn(
            first=torch.from_numpy(first),
            query=torch.from_numpy(of_row),
            numbers=torch.from_numpy(numbers),
            chances=self.chances,
            known=torch.from_numpy(known),
        )
        return Batch(torch.from_numpy(rows), torch.ones(len(rows)), drawn)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """The queries in the order of an epoch."""
        if self._permuted is None or self._permuted[0] != epoch:
            number = len(self.starts) - 1
            order = np.arange(number)
            if self.seed is not None:
                order = np.random.default_rng([self.seed, epoch]).permutation(number)
            self._permuted = epoch, order
        return self._permuted[1]

    def _unknown(self, rng: np.random.Generator, users: np.ndarray) -> np.ndarray:
        """(B, own) items that the users (B,) do not know; drawn again, up to ten times, where they do."""
        numbers = self.drawable[rng.integers(len(self.drawable), size=(len(users), self.own))]
        flat, bases = numbers.reshape(-1), np.repeat(users * np.int64(len(self.interactions.items)), self.own)
        left = np.arange(len(flat))  # what was drawn last
        for _ in range(10):
            keys = bases[left] + flat[left]
            places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
            left = left[self._keys[places] == keys]
            if not len(left):
                break
            flat[left] = self.drawable[rng.integers(len(self.drawable), size=len(left))]
        return numbers


def _by_query(split: Split, interactions: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a split so that those of a query follow each other, and where each query begins (G + 1,)."""
    rows = np.concatenate(split.ids)
    if interactions.columns.history:
        part = np.repeat(np.arange(len(split.ids)), [len(ids) for ids in split.ids])
        keys = part * (rows[:, QUERY].max(initial=0) + np.int64(1)) + rows[:, QUERY]
    else:
        keys = rows[:, USER_COLUMN]
    order = np.argsort(keys, kind="stable")
    rows, keys = rows[order], keys[order]
    begins = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    return rows, np.append(begins, len(rows))
