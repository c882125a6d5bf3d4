"""Control: one dimension for all fields, trained in float32, then rounded to 8 bits.

In the same bytes, tables are up to four times as wide as in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.rounded import RoundedTables, widest


def derive(evidence: Evidence) -> Allocation:
    """The widest dimension within the budget; D if there is no budget."""
    return evidence.allocation(widest(evidence, plain))


def plain(schema: Schema, dims: Mapping[str, int], dim: int) -> RoundedTables:
    """Tables of one width for all fields; the backbone takes this width, so nothing is lifted."""
    return RoundedTables(schema, dims, max(dims.values()), bits=8)


def build(schema: Schema, dim: int, allocation: Allocation) -> RoundedTables:
    return plain(schema, allocation.dims, dim)
