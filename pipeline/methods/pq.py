"""Control: product quantisation after training. Jégou, Douze & Schmid 2011, "Product Quantization for Nearest Neighbor
Search", TPAMI, applied to the tables of a model that was trained with the full dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.contract import Calibration
from pipeline.embeddings.k_means import RowWeights, k_means, row_weights
from pipeline.embeddings.product_codes import (
    OFFERED,
    Centroids,
    ProductQuantised,
    check_dims,
    check_groups,
    closest,
    divisors,
    finest,
)
from pipeline.workflow.validation import Count


class Clustered(ProductQuantised):
    """Plain tables until `finish`, which replaces the vectors of large fields by their nearest centroids.

    Args:
        schema, dim, groups, centroids: of `ProductQuantised`.
        weights: how much a value counts in the fit of the centroids; see `row_weights`.
    """

    def __init__(
        self, schema: Schema, dim: int, *, groups: int, centroids: Sequence[int], weights: RowWeights = "none"
    ) -> None:
        super().__init__(schema, dim, groups=groups, centroids=centroids)
        self.weights = weights
        self.counts: Tensor | None = None  # of the queries' occurrences in training
        if self.queries is not None:
            self.register_buffer("book", torch.zeros(groups, max(centroids), dim // groups))

    book: Tensor

    def books(self) -> Tensor:
        return self.book

    def quantised(self, queries: Tensor, tiers: Tensor) -> Tensor:
        return queries

    def nearest(self, queries: Tensor, tier: int) -> Tensor:
        return closest(queries, self.book)

    def calibrate(self, calibration: Calibration) -> None:
        if self.weights != "none":
            self.counts = (calibration.weights() * calibration.rows())[torch.from_numpy(self.coded_rows)]

    @torch.no_grad()
    def finish(self) -> None:
        """Fit the centroids and assign the codes, at the first call. After that the centroids can be trained.

        Raises:
            ValueError: if the fit needs weights, and `calibrate` was not called.
        """
        if self.queries is not None and not bool(self.settled):
            weights = None
            if self.weights != "none":
                if self.counts is None:
                    raise ValueError(f"pq: weights {self.weights!r} need the training rows; call calibrate first")
                weights = row_weights(self.counts, self.weights)
            book = k_means(self.queries.weight, self.groups, self.book.shape[1], weights=weights)
            del self.book
            self.book = nn.Parameter(book)
        super().finish()


check = check_groups  # of its options


def derive(
    evidence: Evidence,
    *,
    groups: Count | None = None,
    centroids: Centroids | None = None,
    weights: RowWeights = "none",
) -> Allocation:
    """The finest codes within the limit.

    Args:
        groups: G, a divisor of D; None: the best that the limit allows.
        centroids: K; None: the best that the limit allows.
        weights: how much a value counts in the fit of the centroids; see `row_weights`.
    """
    return finest(
        evidence,
        build,
        divisors(evidence.dim) if groups is None else [groups],
        [[k] for k in (OFFERED if centroids is None else [centroids])],
        {} if weights == "none" else {"weights": weights},
    )


def build(schema: Schema, dim: int, allocation: Allocation) -> Clustered:
    check_dims(allocation, dim)
    return Clustered(schema, dim, **allocation.settings)
