"""Control: product quantisation after training. Jégou, Douze & Schmid 2011, "Product Quantization for Nearest Neighbor
Search", TPAMI, on the tables of a model that was trained with the full dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.product_codes import OFFERED, ProductQuantised, check_dims, closest, divisors, finest
from pipeline.workflow.plug import Least

search = None
PER_CENTROID = 256  # vectors that a centroid is fitted to, at most, on average
ITERATIONS = 25  # of Lloyd's algorithm


class Clustered(ProductQuantised):
    """Plain tables until `finish`, which replaces the vectors of large fields by their nearest centroids.

    Centroids are fitted to the values, not to their occurrences: nothing in a table says how often a value occurs.
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
    """Centroids (G, K, D / G) of vectors (n, D), n at least K, group by group.

    Lloyd's algorithm on at most `PER_CENTROID` * K vectors, from K of them drawn at random; a centroid that no vector
    is nearest to moves to a vector drawn at random.
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


def derive(
    given: Evidence,
    *,
    groups: Annotated[int, Least(1)] | None = None,
    centroids: Annotated[int, Least(2)] | None = None,
) -> Allocation:
    """The finest codes within the limit.

    Args:
        groups: G, a divisor of D; None: what the limit allows.
        centroids: K; None: what the limit allows.
    """
    dims = dict.fromkeys(given.schema.names, given.dim)
    offered = [
        Allocation("pq", dims, {"groups": g, "centroids": [k]})
        for g in (divisors(given.dim) if groups is None else [groups])
        for k in (OFFERED if centroids is None else [centroids])
    ]
    return finest(given, build, offered)


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    if not allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    check_dims(allocation, dim)
    return Clustered(schema, dim, **allocation.settings)
