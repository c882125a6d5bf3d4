"""Coded tables: full tables, trained, then coded with the bits per field, block and component that cost the least loss.

The loss of a coding is predicted by its Gauss-Newton matrix (as in LeCun, Denker & Solla 1990, "Optimal Brain Damage",
with the matrix of each field's vectors instead of a diagonal); the bits are chosen as in reverse water-filling (Shannon
1959; Goyal 2001), exactly, by a knapsack. See docs/coding.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.coding import arrays
from pipeline.coding.choice import choose
from pipeline.data.schema import Schema
from pipeline.embeddings.coded import CodedTables, ExaminedTables
from pipeline.embeddings.frequency import frequent, training_counts
from pipeline.workflow.validation import Count, Whole


def check(dim: int, options: Mapping[str, Any]) -> None:
    if (own := options.get("dim") or dim) > dim:
        raise ValueError(f"dim must be at most {dim}, the dim of the full tables, got {own}")


def find(problem: Problem, *, dim: Count | None = None, shared_below: Whole = 0) -> ExaminedTables:
    """Tables of one dimension, which are examined after their training.

    Args:
        dim: of the tables that are coded, and of the vectors that the backbone takes; at most D, which is the default.
            A budget stays a share of the full tables of D. Where a smaller dimension loses little, its tables can be
            coded at a higher rate in the same bytes.
        shared_below: values that fewer training rows show share one vector in each field, also when the model of the
            allocation is trained; each keeps its first-order weight. 0: all values have vectors of their own.

    Raises:
        ValueError: if values shall share vectors, and there are no training ids.
    """
    own = None if shared_below == 0 else frequent(training_counts(problem), problem.schema, shared_below)
    return ExaminedTables(problem.schema, dim or problem.dim, own)


def derive(evidence: Evidence) -> Allocation:
    """The bits with the least predicted loss within the limit; dims are numbers of components with bits, at least 1."""
    found = evidence.arrays
    predictions = arrays.predictions(found, evidence.schema.cardinalities.tolist())
    plans = choose(predictions, evidence.limit)
    used = [min(max(int(plan.used.sum()), 1), int(found["dim"])) for plan in plans]
    kept = {"width": np.array(predictions[0].dim)} | {name: found[name] for name in ("dim", "own") if name in found}
    dims = dict(zip(evidence.schema.names, used, strict=True))
    return evidence.allocation(dims, arrays=arrays.of_plans(plans) | kept)


def build(schema: Schema, dim: int, allocation: Allocation) -> CodedTables:
    width = int(allocation.arrays["width"])
    plans = arrays.plans(allocation.arrays, schema.cardinalities.tolist(), width)
    return CodedTables(schema, int(allocation.arrays["dim"]), width, plans, allocation.arrays.get("own"))
