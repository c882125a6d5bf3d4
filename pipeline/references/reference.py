"""The contract of a reference: a recommender that learns no table, and that every model of the report has to beat.

A reference is a file in ``pipeline/references`` with the names of `Contract`. `pipeline.references.choose` fits all of
them and chooses their options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from pipeline.data.interactions import Pairs


class Scorer(Protocol):
    """A fitted reference."""

    def scores(self, profiles: sparse.csr_array, histories: np.ndarray) -> np.ndarray:
        """The scores (q, I) float32 of all items for q queries, larger for better items.

        Args:
            profiles: (q, I) float32, 1 for each item that the user is known to have interacted with: in training, or in
                the query's history.
            histories: (q, H) the items with which the user last interacted before the query, the latest first;
                `PADDING` fills the rest. H may be 0.
        """


class Contract(Protocol):
    """The names that a file in ``pipeline/references`` defines; options are keyword-only parameters of ``fit``.

    A file may also define ``unsuited(num_items, history) -> str | None``: the reason why the reference is left out for
    a catalogue of so many items and histories of so many interactions; None if it suits them.

    Attributes:
        GRID: the options to choose from.
    """

    GRID: Sequence[Mapping[str, Any]]

    def fit(self, pairs: Pairs, num_items: int, **options: Any) -> Scorer:
        """The reference, fitted to the training pairs.

        Args:
            pairs: distinct pairs of training.
            num_items: I.
            options: an entry of GRID.
        """


def matrix(pairs: Pairs, num_items: int) -> sparse.csr_array:
    """The (U, I) float32 matrix with 1 for each pair."""
    ones = np.ones(len(pairs.items), np.float32)
    return sparse.csr_array((ones, pairs.items, pairs.starts), shape=(len(pairs.starts) - 1, num_items))


def inverse_roots(degrees: np.ndarray) -> np.ndarray:
    """degrees**-0.5; 0 for a degree of 0."""
    return np.where(degrees > 0, degrees, np.inf) ** -0.5
