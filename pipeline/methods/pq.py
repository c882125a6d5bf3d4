"""Control: product quantisation after training. Jégou, Douze & Schmid 2011, "Product Quantization for Nearest Neighbor
Search", TPAMI, applied to the tables of a model that was trained with the full dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.product_codes import (
    OFFERED,
    Centroids,
    ProductQuantised,
    check_dims,
    closest,
    divisors,
    finest,
)
from pipeline.workflow.validation import Count

PER_CENTROID = 256  # the most vectors in the fit, per centroid
ITERATIONS = 25  # of Lloyd's algorithm


class Clustered(ProductQuantised):
    """Plain tables until `finish`, which replaces the vectors of large fields by their nearest centroids.

    The fit of the centroids counts every value once, because a table does not say how often a value occurs.

    Args:
        schema, dim, groups, centroids: of `ProductQuantised`.
    """

    def __init__(self, schema: Schema, dim: int, *, groups: int, centroids: Sequence[int]) -> None:
        super().__init__(schema, dim, groups=groups, centroids=centroids)
        if self.queries is not None:
            self.register_buffer("book", torch.zeros(groups, max(centroids), dim // groups))

    book: Tensor

    def books(self) -> Tensor:
        return self.book

    def quantised(self, queries: Tensor, tiers: Tensor) -> Tensor:
        return queries

    def nearest(self, queries: Tensor, tier: int) -> Tensor:
        return closest(queries, self.book)

    @torch.no_grad()
    def finish(self) -> None:
        if self.queries is not None:
            self.book.copy_(k_means(self.queries.weight, self.groups, self.book.shape[1]))
        super().finish()


def k_means(vectors: Tensor, groups: int, number: int, iterations: int = ITERATIONS, seed: int = 0) -> Tensor:
    """Centroids (G, K, D / G), fitted to vectors group by group.

    Lloyd's algorithm on at most `PER_CENTROID` * K vectors. It starts from K vectors drawn at random. A centroid that
    is nearest to no vector moves to a vector drawn at random.

    Args:
        vectors: (n, D), n at least K.
        groups: G.
        number: K.
        iterations: of the algorithm.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(most: int) -> Tensor:
        return torch.randperm(len(vectors), generator=generator)[:most].to(vectors.device)

    books = vectors[drawn(number)].view(number, groups, -1).transpose(0, 1).contiguous()
    vectors = vectors[drawn(PER_CENTROID * number)]
    grouped = vectors.view(len(vectors), groups, -1).transpose(0, 1)  # (G, n, D / G)
    for _ in range(iterations):
        codes = closest(vectors, books).T.contiguous()  # (G, n)
        counts = torch.zeros_like(books[..., 0]).scatter_add_(1, codes, torch.ones_like(grouped[..., 0]))
        sums = torch.zeros_like(books).scatter_add_(1, codes[..., None].expand_as(grouped), grouped)
        books = sums / counts.clamp(min=1)[..., None]
        group, empty = (counts == 0).nonzero().T
        replaced_by = torch.randint(len(vectors), group.shape, generator=generator).to(group.device)
        books[group, empty] = grouped[group, replaced_by]
    return books


def derive(evidence: Evidence, *, groups: Count | None = None, centroids: Centroids | None = None) -> Allocation:
    """The finest codes within the limit.

    Args:
        groups: G, a divisor of D; None: the best that the limit allows.
        centroids: K; None: the best that the limit allows.
    """
    return finest(
        evidence,
        build,
        divisors(evidence.dim) if groups is None else [groups],
        [[k] for k in (OFFERED if centroids is None else [centroids])],
    )


def build(schema: Schema, dim: int, allocation: Allocation) -> Clustered:
    check_dims(allocation, dim)
    return Clustered(schema, dim, **allocation.settings)
