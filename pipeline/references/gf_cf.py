"""GF-CF: two low-pass filters of the item graph, applied to the known items.

Shen et al. 2021, "How Powerful is Graph Convolution for Recommendation?", CIKM. With the degrees D_U and D_I, the
normalised matrix R = D_U^-1/2 X D_I^-1/2 of the training pairs, and its top right singular vectors V, a profile x has
the scores x (R^T R + alpha D_I^-1/2 V V^T D_I^1/2).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from pipeline.data.interactions import Pairs
from pipeline.references.reference import inverse_roots, matrix

GRID: Sequence[Mapping[str, Any]] = tuple(
    {"vectors": vectors, "alpha": alpha} for vectors in (64, 256) for alpha in (0.1, 0.3, 1.0)
)

_ZERO = 1e-6  # singular values of up to this are 0 but for rounding; the largest one is 1


def fit(pairs: Pairs, num_items: int, *, vectors: int, alpha: float) -> GfCf:
    """The filters.

    Args:
        vectors: number of singular vectors; fewer where the matrix has fewer.
        alpha: weight of the filter by singular vectors.
    """
    normalised, basis = _filters(pairs, num_items, vectors)
    degrees = np.bincount(pairs.items, minlength=num_items)
    into = basis.T * inverse_roots(degrees)[:, None] * alpha
    out = basis * np.sqrt(degrees)
    return GfCf(normalised, normalised.T.tocsr(), into.astype(np.float32), out.astype(np.float32))


@functools.lru_cache(1)  # the singular vectors take nearly all the time, and alpha does not change them
def _filters(pairs: Pairs, num_items: int, vectors: int) -> tuple[sparse.csr_array, np.ndarray]:
    """R (U, I) float32 and its top right singular vectors (up to ``vectors``, I), without those of the value 0."""
    known = matrix(pairs, num_items)
    users, items = (inverse_roots(known.sum(axis=axis)) for axis in (1, 0))
    normalised = (sparse.diags_array(users) @ known @ sparse.diags_array(items)).tocsr()
    least = min(normalised.shape)
    if vectors < least:  # what ARPACK can find; it starts from the same vector each time, for the same result
        start = np.random.default_rng(0).standard_normal(least)
        values, basis = svds(normalised, vectors, v0=start, return_singular_vectors="vh")[1:]
    else:
        values, basis = np.linalg.svd(normalised.toarray(), full_matrices=False)[1:]
    return normalised.astype(np.float32), basis[values > _ZERO]


@dataclass(frozen=True, eq=False)
class GfCf:
    """Scores by the filters.

    Args:
        normalised, transposed: (U, I) and (I, U) float32, R and its transpose.
        into: (I, v) float32, alpha D_I^-1/2 V.
        out: (v, I) float32, V^T D_I^1/2.
    """

    normalised: sparse.csr_array
    transposed: sparse.csr_array
    into: np.ndarray
    out: np.ndarray

    def scores(self, profiles: sparse.csr_array, histories: np.ndarray) -> np.ndarray:
        users = (self.normalised @ profiles.T).toarray()  # the next product is faster with a dense factor
        linear = (self.transposed @ users).T
        return linear + (profiles @ self.into) @ self.out
