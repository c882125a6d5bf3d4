"""Batches of interactions, each with items that are drawn at random to stand for all that a user did not choose."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.data.batches import Batch, Batches, Drawn
from pipeline.data.interactions import ITEM_COLUMN, USER_COLUMN, Interactions
from pipeline.data.split import Split


class DrawnBatches(Batches):
    """Batches of interactions with drawn items. What is drawn depends on the seed, the epoch and the position alone.

    Items are drawn uniformly from those with training rows: a model learns nothing about the others, and to push them
    down would be wrong.

    Args:
        split: rows of interactions.
        batch_size: most rows of a batch.
        seed: see `Batches`; without a seed the draws are those of seed 0.
        shared: number of items that all rows of a batch share. If it is at least the number of items, all items are
            taken, each once.
        own: number of items for each row, none of which the row's user knows (unless the user knows nearly all).
        with_batch: whether the items of the batch are candidates, too; this only enters ``chances``.
        known: whether the items that users know are passed on.

    Raises:
        ValueError: if the rows are no interactions.
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
        self.pairs = self.interactions.pairs(*split.parts)
        self.shared, self.own, self.known = shared, own, known
        rows = np.concatenate([ids[:, ITEM_COLUMN] for ids in split.ids])
        counts = np.bincount(rows, minlength=len(self.interactions.items))
        self.drawable = np.flatnonzero(counts)
        self.every = shared >= len(self.drawable)
        absent = np.zeros(len(counts))  # log of the probability not to be among the candidates
        with np.errstate(divide="ignore"):
            if with_batch:
                absent += -(-len(split) // len(self)) * np.log1p(-counts / len(split))
            if shared:
                drawn = -np.inf if self.every else shared * np.log1p(-1 / len(self.drawable))
                absent[self.drawable] += drawn
        chances = np.log(np.maximum(-np.expm1(absent), np.finfo(np.float32).tiny))
        self.chances = torch.from_numpy(chances.astype(np.float32))
        self._keys = self.pairs.users * np.int64(len(counts)) + self.pairs.items

    def take(self) -> Batch:
        rng = np.random.default_rng([self.seed or 0, self.epoch, self.position])
        batch = super().take()
        users = batch.ids[:, USER_COLUMN].numpy().astype(np.int64)
        if self.own:
            numbers = self._unknown(rng, users)
        elif self.every:
            numbers = self.drawable
        else:
            numbers = self.drawable[rng.integers(len(self.drawable), size=self.shared)]
        known = np.stack(self.pairs.of_users(users)) if self.known else np.zeros((2, 0), np.int64)
        return batch._replace(drawn=Drawn(torch.from_numpy(numbers), self.chances, torch.from_numpy(known)))

    def _unknown(self, rng: np.random.Generator, users: np.ndarray) -> np.ndarray:
        """(B, own) items that the users (B,) do not know; drawn again, up to ten times, where they do."""
        numbers = self.drawable[rng.integers(len(self.drawable), size=(len(users), self.own))]
        for _ in range(10):
            keys = users[:, None] * np.int64(len(self.interactions.items)) + numbers
            places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
            again = self._keys[places] == keys
            if not again.any():
                break
            numbers[again] = self.drawable[rng.integers(len(self.drawable), size=int(again.sum()))]
        return numbers
