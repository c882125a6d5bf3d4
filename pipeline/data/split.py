"""The encoded rows on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Part = Literal["train", "arch", "val", "test"]


def _mapped(path: Path, dimensions: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: is no whole .npy file ({error}); encode the data again") from error
    if array.ndim != dimensions:
        raise ValueError(f"{path}: must have {dimensions} dimensions, however {array.shape=}; encode the data again")
    return array


@dataclass(frozen=True)
class Split:
    """Rows of one or more parts of an encoded data set.

    Each part has one purpose: ``train`` weights, ``arch`` architecture weights, ``val`` early stopping and the
    choice of hyperparameters, ``test`` the final evaluation alone.

    Args:
        ids: arrays (n_i, S) int32, one per part.
        labels: arrays (n_i,) uint8, 0 or 1.
    """

    ids: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]

    @classmethod
    def load(cls, folder: str | Path, *parts: Part) -> Split:
        """Memory-map the named parts of an encoded data set.

        Raises:
            ValueError: naming the file, if one is broken.
        """
        folder = Path(folder)
        ids = tuple(_mapped(folder / part / "ids.npy", 2) for part in parts)
        labels = tuple(_mapped(folder / part / "labels.npy", 1) for part in parts)
        for part, rows, answers in zip(parts, ids, labels, strict=True):
            if len(rows) != len(answers):
                raise ValueError(
                    f"{folder / part}: {len(rows)} rows in ids.npy, {len(answers)} in labels.npy; encode the data again"
                )
        return cls(ids, labels)

    def __len__(self) -> int:
        return sum(map(len, self.labels))

    def thinned(self, share: float) -> Split:
        """Every k-th row of each part, for a share of 1/k.

        Raises:
            ValueError: if there is no such k.
        """
        every = round(1 / share) if share > 0 else 0
        if every < 1 or abs(every * share - 1) > 1e-6:
            raise ValueError(f"a share of the rows must be 1/k for a whole number k, however: {share}")
        return Split(tuple(ids[::every] for ids in self.ids), tuple(labels[::every] for labels in self.labels))

    def all_labels(self) -> np.ndarray:
        """(n,) uint8."""
        return np.concatenate(self.labels)

    def slice(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``start`` to ``stop`` as ids (n, S) and labels (n,), in memory."""
        ids, labels = [], []
        for part_ids, part_labels in zip(self.ids, self.labels, strict=True):
            ids.append(part_ids[max(0, start) : max(0, stop)])
            labels.append(part_labels[max(0, start) : max(0, stop)])
            start, stop = start - len(part_labels), stop - len(part_labels)
        return np.concatenate(ids), np.concatenate(labels)
