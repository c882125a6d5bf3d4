"""Encoded rows on disk."""

from __future__ import annotations

import tokenize
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from pipeline.data.interactions import Interactions
from pipeline.workflow.outputs import broken, regular

Part = Literal["train", "arch", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
LEAST_ROWS = 50  # of val or test; fewer are too few to judge by


def mapped(path: Path, dimensions: int) -> np.ndarray:
    """A memory-mapped .npy file of so many dimensions.

    Raises:
        ValueError: naming the file, if it is broken.
    """
    try:
        array = np.load(regular(path), mmap_mode="r")
    except (ValueError, EOFError, OverflowError, tokenize.TokenError) as error:
        raise broken(path, f"is not a whole .npy file ({error})") from error
    if array.ndim != dimensions:
        raise broken(path, f"must have {dimensions} dimensions, got shape {array.shape}")
    return array


@dataclass(frozen=True)
class Split:
    """Rows of one or more parts of an encoded data set.

    Each part has one purpose: ``train`` for the weights, ``arch`` for the architecture parameters, ``val`` for early
    stopping and the choice of hyperparameters, ``test`` for the final evaluation only.

    Args:
        ids: arrays (n_i, S) int32, one per part.
        labels: arrays (n_i,), one per part; uint8 for labels of 0 and 1, float32 for other numbers.
        parts: their names.
        interactions: what the parts share if the rows are interactions; then S is the number of their columns.
    """

    ids: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    parts: tuple[Part, ...] = ()
    interactions: Interactions | None = None

    @classmethod
    def load(cls, folder: str | Path, *parts: Part) -> Split:
        """Memory-map the named parts of an encoded data set.

        Raises:
            ValueError: naming a broken file.
        """
        folder = Path(folder)
        ids = tuple(mapped(folder / part / "ids.npy", 2) for part in parts)
        labels = tuple(mapped(folder / part / "labels.npy", 1) for part in parts)
        for part, part_ids, part_labels in zip(parts, ids, labels, strict=True):
            if len(part_ids) != len(part_labels):
                raise broken(folder / part, f"has {len(part_ids)} rows in ids.npy and {len(part_labels)} in labels.npy")
        return cls(ids, labels, parts)

    def __len__(self) -> int:
        return sum(map(len, self.labels))

    def thinned(self, share: float) -> Split:
        """Every k-th row of each part, for a share of 1/k.

        Raises:
            ValueError: if the share is not 1/k for a whole k.
        """
        every = round(1 / share) if share > 0 else 0
        if every < 1 or abs(every * share - 1) > 1e-6:
            raise ValueError(f"a share of the rows must be 1/k for a whole number k, got {share}")
        ids, labels = (tuple(array[::every] for array in arrays) for arrays in (self.ids, self.labels))
        return replace(self, ids=ids, labels=labels)

    def head(self, rows: int) -> Split:
        """The first ``rows`` rows, copied to memory."""
        ids, labels = self.slice(0, rows)
        return replace(self, ids=(ids,), labels=(labels,))

    def all_labels(self) -> np.ndarray:
        """(n,) labels of all rows, in order."""
        return np.concatenate(self.labels)

    def between(self, start: int, stop: int) -> Split:
        """Rows ``start`` to ``stop``, without a copy."""
        ids, labels = [], []
        for part_ids, part_labels in zip(self.ids, self.labels, strict=True):
            ids.append(part_ids[max(0, start) : max(0, stop)])
            labels.append(part_labels[max(0, start) : max(0, stop)])
            start, stop = start - len(part_labels), stop - len(part_labels)
        return replace(self, ids=tuple(ids), labels=tuple(labels))

    def slice(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``start`` to ``stop``, copied to memory: ids (n, S) and labels (n,)."""
        rows = self.between(start, stop)
        return np.concatenate(rows.ids), np.concatenate(rows.labels)
