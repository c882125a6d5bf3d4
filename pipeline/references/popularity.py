"""Popularity: the items that most users have, the same for everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from pipeline.data.interactions import Pairs

GRID: Sequence[Mapping[str, Any]] = ({},)


def fit(pairs: Pairs, num_items: int) -> Popularity:
    return Popularity(np.bincount(pairs.items, minlength=num_items).astype(np.float32))


@dataclass(frozen=True, eq=False)
class Popularity:
    """Scores by popularity.

    Args:
        counts: (I,) float32, training users of each item.
    """

    counts: np.ndarray

    def scores(self, profiles: sparse.csr_array, histories: np.ndarray) -> np.ndarray:
        return np.repeat(self.counts[None], profiles.shape[0], axis=0)
