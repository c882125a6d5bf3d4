"""Control: one dimension for all fields; its tables match given bytes, or fill a budget."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.cost import nearest_uniform, widest_uniform
from pipeline.embeddings.mixed import MixedTables


def derive(evidence: Evidence, *, lift: bool = False) -> Allocation:
    """The dimension nearest to ``evidence.match`` bytes; without bytes to match, the widest within the limit.

    Args:
        lift: whether vectors are lifted to D by a projection per field, as in methods with several dimensions, and the
            widest dimension within the limit is chosen; otherwise the backbone takes the smaller width. The lifted
            control separates the gain of chosen dimensions from the gain of a wider backbone.
    """
    schema, dim = evidence.schema, evidence.dim
    if evidence.match is not None and not lift:
        return evidence.allocation(nearest_uniform(schema, dim, evidence.match).dim)

    def make(d: int) -> MixedTables:
        return MixedTables(schema, dict.fromkeys(schema.names, d), dim if lift else d)

    widest = widest_uniform(make, dim, evidence.limit, evidence.method).dim
    return evidence.allocation(widest, {"lift": True} if lift else {})


def plain(schema: Schema, dims: Mapping[str, int], dim: int) -> MixedTables:
    return MixedTables(schema, dims, max(dims.values()))


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    """Plain tables, with projections if the allocation is lifted."""
    if allocation.settings.get("lift", False):
        return MixedTables(schema, allocation.dims, dim)
    return plain(schema, allocation.dims, dim)
