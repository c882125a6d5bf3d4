"""Last bought: the items of the query's history, the latest first, then the most popular ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from pipeline.data.interactions import Pairs
from pipeline.data.schema import PADDING

GRID: Sequence[Mapping[str, Any]] = ({},)


def unsuited(num_items: int, history: int) -> str | None:
    return None if history else "the data have no history"


def fit(pairs: Pairs, num_items: int) -> LastBought:
    counts = np.bincount(pairs.items, minlength=num_items)
    return LastBought((counts / (1 + counts.max())).astype(np.float32))


@dataclass(frozen=True, eq=False)
class LastBought:
    """Scores by the place in the history.

    Args:
        popularity: (I,) float32 from 0 to below 1.
    """

    popularity: np.ndarray

    def scores(self, profiles: sparse.csr_array, histories: np.ndarray) -> np.ndarray:
        scores = np.repeat(self.popularity[None], len(histories), axis=0)
        length = histories.shape[1]
        for place in reversed(range(length)):  # the latest place of an item is written last
            known = np.flatnonzero(histories[:, place] != PADDING)
            scores[known, histories[known, place]] = length - place
        return scores
