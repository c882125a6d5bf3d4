"""EASE: every item is predicted from all others by ridge regression, in closed form.

Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW: with P = (X^T X + ridge I)^-1 for the (U, I)
matrix X of the training pairs, the weights are -P_ij / P_jj, and 0 on the diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from pipeline.data.interactions import Pairs
from pipeline.references.reference import matrix

GRID: Sequence[Mapping[str, Any]] = tuple({"ridge": ridge} for ridge in (30.0, 100.0, 300.0, 600.0, 1000.0, 3000.0))
MOST_ITEMS = 15_000  # the (I, I) matrix then takes 0.9 GB, and its inverse minutes
_BLOCK = 1000  # columns of X^T X that are computed at a time


def unsuited(num_items: int, history: int) -> str | None:
    if num_items <= MOST_ITEMS:
        return None
    return f"it inverts a matrix of {num_items:,} x {num_items:,} items, and is run up to {MOST_ITEMS:,}"


def fit(pairs: Pairs, num_items: int, *, ridge: float) -> Ease:
    """The regressions.

    Args:
        ridge: penalty of the squared weights, above 0.

    Raises:
        ValueError: if the ridge is so small that float32 cannot tell the items apart.
    """
    known = matrix(pairs, num_items).tocsc()
    inverse = np.empty((num_items, num_items), np.float32, order="F")  # overwritten in place, to hold one such matrix
    for start in range(0, num_items, _BLOCK):
        inverse[:, start : start + _BLOCK] = (known.T @ known[:, start : start + _BLOCK]).toarray()
    inverse[np.diag_indices(num_items)] += np.float32(ridge)
    inverse, failed = lapack.spotrf(inverse, lower=True, overwrite_a=True)
    if not failed:
        inverse, failed = lapack.spotri(inverse, lower=True, overwrite_c=True)
    if failed:
        raise ValueError(f"ridge must be so large that X^T X + ridge I can be inverted in float32, got {ridge}")
    for item in range(num_items):  # lapack computes the lower triangle only
        inverse[item, item + 1 :] = inverse[item + 1 :, item]
    weights = inverse.T  # equal, and contiguous by rows
    weights /= -inverse.diagonal().copy()
    np.fill_diagonal(weights, 0)
    return Ease(weights)


@dataclass(frozen=True, eq=False)
class Ease:
    """Scores by the weights of the known items.

    Args:
        weights: (I, I) float32, from the known item to the predicted one.
    """

    weights: np.ndarray

    def scores(self, profiles: sparse.csr_array, histories: np.ndarray) -> np.ndarray:
        return profiles @ self.weights
