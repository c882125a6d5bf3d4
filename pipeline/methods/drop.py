"""Control: every field keeps its full dimension or is dropped, to show how much field selection alone achieves."""

from __future__ import annotations

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Schema
from pipeline.embeddings.gates import Gated, Over, most_salient


def candidates(schema: Schema, dim: int) -> list[list[int]]:
    """For every field, 0 and D."""
    return [[0, dim] for _ in schema.fields]


def find(problem: Problem, *, over: Over = "batch") -> Gated:
    """The plain model with one gate per field.

    Args:
        over: see `Gated`.
    """
    return Gated(problem.schema, problem.dim, 1, over)


def derive(evidence: Evidence) -> Allocation:
    """The fields with the largest sum of saliencies whose full tables fit the limit; at least one field is kept."""
    saliency = evidence.arrays["saliency"]
    return most_salient(evidence, np.concatenate([np.zeros_like(saliency), saliency], axis=1))
