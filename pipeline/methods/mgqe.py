"""MGQE. Kang et al. 2020, "Learning Multi-granular Quantized Embeddings for Large-Vocab Categorical Features in
Recommender Systems", WWW companion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.product_codes import OFFERED, NearestCentroids, check_dims, divisors, finest
from pipeline.workflow.plug import Least

search = None
FEWER = 4  # times as many centroids for the head as for the tail: 256 and 64


def derive(
    given: Evidence,
    *,
    groups: Annotated[int, Least(1)] | None = None,
    centroids: Sequence[int] | None = None,
    head: float = 0.1,
    commitment: Annotated[float, Least(0)] = 0.0,
) -> Allocation:
    """The finest codes within the limit: DPQ-VX in which a field's rare values may use fewer centroids.

    Of every field the share ``head`` of the most frequent values may use all K centroids of a codebook, the others
    the first K / 4, so that a code of theirs takes two bits less.

    Args:
        groups: G, a divisor of D; None: what the limit allows.
        centroids: K of head and tail, e.g. [256, 64]; None: what the limit allows.
        head: share of the frequent values.
        commitment: see `NearestCentroids`.
    """
    if centroids is not None and len(centroids) != 2:
        raise ValueError(f"method.options: mgqe: centroids are two numbers, of head and tail, however: {centroids}")
    pairs = [(k, k // FEWER) for k in OFFERED if k >= 2 * FEWER] if centroids is None else [tuple(centroids)]
    dims = dict.fromkeys(given.schema.names, given.dim)
    offered = [
        Allocation("mgqe", dims, {"groups": g, "centroids": list(k), "shares": [head], "commitment": commitment})
        for g in (divisors(given.dim) if groups is None else [groups])
        for k in pairs
    ]
    return finest(given, build, offered)


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    if not allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    check_dims(allocation, dim)
    return NearestCentroids(schema, dim, **allocation.settings)
