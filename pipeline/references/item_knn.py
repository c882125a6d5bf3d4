"""Item-based neighbours: an item's score is the sum of its similarities to those of its neighbours that the user knows.

Sarwar et al. 2001, "Item-Based Collaborative Filtering Recommendation Algorithms", WWW; Deshpande, Karypis 2004,
"Item-Based Top-N Recommendation Algorithms", TOIS. The similarity is the cosine of two items' sets of users, shrunk for
rare items: users of both / (sqrt(users of one x users of the other) + shrinkage).

NOTE[DIFF]: the neighbours are those of the item that is scored, as in Sarwar et al. Deshpande and Karypis take those of
the known items, which had the lower recall on MovieLens-1M.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from pipeline.data.interactions import Pairs
from pipeline.references.reference import matrix

GRID: Sequence[Mapping[str, Any]] = tuple(
    {"neighbours": neighbours, "shrinkage": shrinkage} for neighbours in (20, 100, 400) for shrinkage in (0.0, 10.0)
)
_BLOCK = 1000  # items whose similarities are in memory at a time


def fit(pairs: Pairs, num_items: int, *, neighbours: int, shrinkage: float) -> ItemKNN:
    """The neighbours of all items.

    Args:
        neighbours: of each item; of equally similar ones, those of the smaller numbers.
        shrinkage: in the denominator, at least 0.
    """
    known = matrix(pairs, num_items)
    roots = np.sqrt(np.bincount(pairs.items, minlength=num_items))
    of_items = known.T.tocsr()
    blocks = [
        _nearest(of_items[start : start + _BLOCK] @ known, start, roots, neighbours, shrinkage)
        for start in range(0, num_items, _BLOCK)
    ]
    return ItemKNN(sparse.vstack(blocks).T.tocsr())


def _nearest(
    both: sparse.csr_array, start: int, roots: np.ndarray, neighbours: int, shrinkage: float
) -> sparse.csr_array:
    """(b, I) similarities of items from ``start`` on to their nearest neighbours, from the users of both (b, I)."""
    both = both.tocoo()
    others = both.col != both.row + start
    rows, columns, users = both.row[others], both.col[others], both.data[others]
    cosines = users / (roots[rows + start] * roots[columns] + shrinkage)
    order = np.lexsort((columns, -cosines, rows))
    rows, columns, cosines = rows[order], columns[order], cosines[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    near = place < neighbours
    entries = (cosines[near].astype(np.float32), (rows[near], columns[near]))
    return sparse.csr_array(entries, shape=both.shape)


@dataclass(frozen=True, eq=False)
class ItemKNN:
    """Scores by the sum of similarities.

    Args:
        similarities: (I, I) float32, from a neighbour to the items that it is a neighbour of.
    """

    similarities: sparse.csr_array

    def scores(self, profiles: sparse.csr_array, histories: np.ndarray) -> np.ndarray:
        return (profiles @ self.similarities).toarray()
