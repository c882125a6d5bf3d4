"""SSEDS. Qu et al. 2022, "Single-shot Embedding Dimension Search in Recommender System", SIGIR."""

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
    """Every dimension up to D, and 0."""
    return [list(range(dim + 1)) for _ in schema.fields]


def search(
    schema: Schema, dim: int, candidates: Sequence[Sequence[int]], prices: np.ndarray, *, over: Over = "batch"
) -> Gated:
    """The plain model, whose dimensions are judged when it is trained.

    Args:
        over: see `Gated`; the paper's is "batch".
    """
    return Gated(schema, dim, dim, over)


def derive(given: Evidence, *, per_row: bool = False) -> Allocation:
    """The dimensions with the largest sum of saliencies within the limit; a field gets as many as it has among them.

    Which of its columns they were does not matter, for what is kept is trained anew.

    Args:
        per_row: divide saliencies by the number of values of the field.

    NOTE[DIFF]: the paper keeps a number of dimensions, the most salient ones. Ours keeps bytes, those of the
    projections among them, which makes a knapsack of it.
    """
    saliency = given.found["saliency"]
    if per_row:
        saliency = saliency / given.schema.cardinalities[:, None]
    largest = -np.sort(-saliency, axis=1)
    scores = np.concatenate([np.zeros((len(largest), 1)), largest.cumsum(1)], axis=1)
    chosen = within_budget(scores / max(scores.max(), np.finfo(float).tiny), given.prices, given.limit, drop_all=False)
    return Allocation("sseds", {name: int(d) for name, d in zip(given.schema.names, chosen, strict=True)})


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
