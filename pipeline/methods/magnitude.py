"""Magnitude pruning: the full tables are trained, then their smallest numbers are taken for 0.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS, for embeddings as in
Tran et al. 2024, "A Thorough Performance Benchmarking on Lightweight Embedding-based Recommender Systems".
"""

from typing import Annotated

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.kept_cells import Pruned, cells_within
from pipeline.embeddings.mixed import MixedTables
from pipeline.workflow.plug import Least

search = None


def derive(given: Evidence, *, least: Annotated[int, Least(0)] = 0) -> Allocation:
    """As many cells as the limit allows; which ones is seen when they are trained.

    Args:
        least: cells of every row that are kept, its largest, whatever others are larger.

    NOTE[DIFF]: nothing is trained after the pruning, as in the benchmark; Han et al. train what is left.
    """
    if least > given.dim:
        raise ValueError(f"method.options: a row has {given.dim} cells, however {least=}")
    cells = cells_within(given.schema.num_rows, given.dim, given.limit, max(1, least * given.schema.num_rows))
    dims = dict.fromkeys(given.schema.names, given.dim)
    return Allocation("magnitude", dims, {"cells": cells, "least": least})


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    if not allocation.settings:
        return MixedTables(schema, allocation.dims, dim)
    return Pruned(schema, dim, allocation.settings["cells"], allocation.settings["least"])
