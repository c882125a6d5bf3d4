"""MGQE. Kang et al. 2020, "Learning Multi-granular Quantized Embeddings for Large-Vocab Categorical Features in
Recommender Systems", WWW companion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.product_codes import OFFERED, NearestCentroids, check_dims, check_groups, divisors, finest
from pipeline.workflow.validation import Count, Rate

FEWER = 4  # the tail has a quarter of the head's centroids: 64 and 256


def check(dim: int, options: Mapping[str, Any]) -> None:
    check_groups(dim, options)
    centroids = options.get("centroids")
    if centroids is not None and (len(centroids) != 2 or centroids[0] < centroids[1]):
        raise ValueError(f"centroids must be two numbers, of head and tail, that do not rise, got {list(centroids)}")


def derive(
    evidence: Evidence,
    *,
    groups: Count | None = None,
    centroids: Sequence[int] | None = None,
    head: float = 0.1,
    commitment: Rate = 0.0,
) -> Allocation:
    """The finest codes within the limit: DPQ-VX with fewer centroids for the rare values of a field.

    The most frequent values of a field, a share ``head`` of them, use all K centroids of a codebook. The other values
    use the first K / 4, so their codes take two bits less.

    Args:
        groups: G, a divisor of D; None: the best that the limit allows.
        centroids: numbers of centroids of head and tail, e.g. [256, 64]; None: the best that the limit allows.
        head: share of the frequent values.
        commitment: see `NearestCentroids`.
    """
    return finest(
        evidence,
        build,
        divisors(evidence.dim) if groups is None else [groups],
        [(k, k // FEWER) for k in OFFERED if k >= 2 * FEWER] if centroids is None else [centroids],
        {"shares": [head], "commitment": commitment},
    )


def build(schema: Schema, dim: int, allocation: Allocation) -> NearestCentroids:
    check_dims(allocation, dim)
    return NearestCentroids(schema, dim, **allocation.settings)
