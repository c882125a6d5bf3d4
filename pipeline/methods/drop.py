"""Control: a field keeps its full dimension or is dropped. What of a dimension search is a selection of fields?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.allocation.knapsack import within_budget
from pipeline.data.schema import Schema
from pipeline.embeddings.gates import Gated, Over
from pipeline.embeddings.mixed import MixedTables


def candidates(schema: Schema, dim: int) -> list[list[int]]:
    """All or nothing."""
    return [[0, dim] for _ in schema.fields]


def search(
    schema: Schema, dim: int, candidates: Sequence[Sequence[int]], prices: np.ndarray, *, over: Over = "batch"
) -> Gated:
    """The plain model with one gate for each field.

    Args:
        over: see `Gated`.
    """
    return Gated(schema, dim, 1, over)


def derive(given: Evidence) -> Allocation:
    """The fields with the largest sum of saliencies whose full tables fit the limit; one at least."""
    saliency = given.found["saliency"]
    scores = np.concatenate([np.zeros_like(saliency), saliency], axis=1)
    chosen = within_budget(scores / max(scores.max(), np.finfo(float).tiny), given.prices, given.limit, drop_all=False)
    dims = {name: given.dim * int(kept) for name, kept in zip(given.schema.names, chosen, strict=True)}
    return Allocation("drop", dims)


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
