"""SSEDS. Qu et al. 2022, "Single-shot Embedding Dimension Search in Recommender System", SIGIR."""

from __future__ import annotations

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Schema
from pipeline.embeddings.gates import Gated, Over, most_salient


def candidates(schema: Schema, dim: int) -> list[list[int]]:
    """For every field, 0 to D."""
    return [list(range(dim + 1)) for _ in schema.fields]


def find(problem: Problem, *, over: Over = "batch") -> Gated:
    """The plain model with one gate per dimension of each field, measured after training.

    Args:
        over: see `Gated`; "batch" in the paper.
    """
    return Gated(problem.schema, problem.dim, problem.dim, over)


def derive(evidence: Evidence, *, per_row: bool = False) -> Allocation:
    """The dimensions of the fields with the largest sum of saliencies within the limit.

    A field of dimension d counts the saliencies of its d most salient columns. Which columns these are does not matter
    later, because the final tables are trained anew.

    Args:
        per_row: whether to divide saliencies by the number of values of the field.

    NOTE[DIFF]: the paper keeps a given number of dimensions, the most salient ones. Here they fill bytes, projections
    included, which is a knapsack problem.
    """
    saliency = evidence.arrays["saliency"]
    if per_row:
        saliency = saliency / evidence.schema.cardinalities[:, None]
    largest = -np.sort(-saliency, axis=1)
    return most_salient(evidence, np.concatenate([np.zeros((len(largest), 1)), largest.cumsum(1)], axis=1))
