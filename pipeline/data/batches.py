"""Batches of encoded rows, read as whole slices of memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.split import Split

BLOCK_ROWS = 256  # neighbouring rows that are read from disk together
WINDOW_BLOCKS = 1024  # blocks that are shuffled together in memory


class Drawn(NamedTuple):
    """What a batch of interactions has besides its rows; see `pipeline.data.drawn`.

    Args:
        first: (G,) int64 the first row of each query of the batch.
        query: (B,) int64 the query of each row, from 0 to G - 1, ascending.
        numbers: (B, k) int64 items that are drawn for each row, or (n,) items for all rows.
        chances: (I,) float32 natural logarithm of the probability of each item to be among the candidates of a batch.
        known: (2, m) int64: a query of the batch, and an item with which its user has interacted.
    """

    first: Tensor
    query: Tensor
    numbers: Tensor
    chances: Tensor
    known: Tensor


class Batch(NamedTuple):
    """B rows for one step.

    Args:
        ids: (B, S) int32.
        labels: (B,) float32.
        drawn: items that are drawn for the batch, if a task needs them; see `pipeline.data.drawn`.
    """

    ids: Tensor
    labels: Tensor
    drawn: Drawn | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with a function of each of its tensors in the tensor's place."""
        drawn = None if self.drawn is None else Drawn(*map(function, self.drawn))
        return Batch(function(self.ids), function(self.labels), drawn)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the batch."""
        yield from (self.ids, self.labels, *(self.drawn or ()))


class Batches:
    """Batches of a split; iteration can resume in the middle of an epoch.

    With a seed, every epoch is a new permutation of all rows: the blocks of rows are permuted, then one window of
    blocks at a time is read into memory and its rows are permuted. The permutation is uniformly random for up to
    ``BLOCK_ROWS * WINDOW_BLOCKS`` rows. Batch sizes differ by at most one row, so no batch is too small for BatchNorm.

    An iterator ends with the current epoch. ``state_dict`` holds the position of the next batch.

    Args:
        split: the rows.
        batch_size: largest number of rows in a batch.
        seed: of the permutations; None for the order of the rows.

    Raises:
        ValueError: if there are no rows, or ``batch_size`` is below 1.
    """

    def __init__(self, split: Split, batch_size: int, seed: int | None = None) -> None:
        if not len(split):
            raise ValueError("there are no rows to make batches of")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.split, self.seed = split, seed
        number = -(-len(split) // batch_size)
        self.bounds = [len(split) * i // number for i in range(number + 1)]
        self.epoch = self.position = 0
        self._window: tuple[tuple[int, int], tuple[np.ndarray, np.ndarray]] | None = None
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self.take()
            last = self.position == 0
            yield batch
            if last:
                return

    def take(self) -> Batch:
        """The next batch; after the last batch of an epoch, the first of the next one."""
        epoch, position = self.epoch, self.position
        # Advance before returning: Lightning does not call again after the last batch of an epoch.
        self.epoch, self.position = divmod(epoch * len(self) + position + 1, len(self))
        start, stop = self.bounds[position], self.bounds[position + 1]
        if self.seed is None:
            ids, labels = self.split.slice(start, stop)
        else:
            ids, labels = self._shuffled(epoch, start, stop)
        return Batch(torch.from_numpy(ids), torch.from_numpy(labels.astype(np.float32)))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]

    def _shuffled(self, epoch: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``start`` to ``stop`` of the epoch's permutation."""
        if self._order is None or self._order[0] != epoch:
            blocks = np.random.default_rng([self.seed or 0, epoch]).permutation(-(-len(self.split) // BLOCK_ROWS))
            sizes = np.minimum(BLOCK_ROWS, len(self.split) - blocks * BLOCK_ROWS)
            per_window = np.add.reduceat(sizes, np.arange(0, len(sizes), WINDOW_BLOCKS))
            self._order = epoch, blocks, np.concatenate([[0], np.cumsum(per_window)])
        _, blocks, edges = self._order
        ids, labels = [], []
        while start < stop:
            window = int(np.searchsorted(edges, start, side="right")) - 1
            window_ids, window_labels = self._load(epoch, window, blocks)
            take = slice(start - edges[window], min(stop, edges[window + 1]) - edges[window])
            ids.append(window_ids[take])
            labels.append(window_labels[take])
            start += len(labels[-1])
        return np.concatenate(ids), np.concatenate(labels)

    def _load(self, epoch: int, window: int, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._window is None or self._window[0] != (epoch, window):
            self._window = None  # frees its memory before the next window is read
            chosen = blocks[window * WINDOW_BLOCKS : (window + 1) * WINDOW_BLOCKS]
            parts = [self.split.slice(b * BLOCK_ROWS, min(len(self.split), (b + 1) * BLOCK_ROWS)) for b in chosen]
            ids = np.concatenate([part[0] for part in parts])
            labels = np.concatenate([part[1] for part in parts])
            order = np.random.default_rng([self.seed or 0, epoch, window]).permutation(len(labels))
            self._window = (epoch, window), (ids[order], labels[order])
        return self._window[1]
