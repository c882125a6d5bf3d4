"""Magnitude pruning: the full tables are trained, then their smallest numbers are set to 0.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS, applied to embeddings
as in Tran et al. 2024, "A Thorough Performance Benchmarking on Lightweight Embedding-based Recommender Systems".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.kept_cells import Pruned, cells_within
from pipeline.workflow.validation import Whole


def check(dim: int, options: Mapping[str, Any]) -> None:
    if options.get("least", 0) > dim:
        raise ValueError(f"least must be at most {dim}, the dim of the full tables, got {options['least']}")


def derive(evidence: Evidence, *, least: Whole = 0) -> Allocation:
    """As many cells as the limit allows; after training, the largest ones are kept.

    Args:
        least: the number of cells that each row keeps at least, even if other rows have larger cells.

    NOTE[DIFF]: nothing is trained after the pruning, as in the benchmark; Han et al. train the remaining numbers.

    Raises:
        TooFewBytes: if the limit is too small; the message says the fewest possible bytes.
    """
    rows, dim = evidence.schema.num_rows, evidence.dim
    cells = cells_within(rows, dim, evidence.limit, max(1, least * rows))
    return evidence.allocation(dim, {"cells": cells, "least": least})


def build(schema: Schema, dim: int, allocation: Allocation) -> Pruned:
    return Pruned(schema, dim, allocation.settings["cells"], allocation.settings["least"])
