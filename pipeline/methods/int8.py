"""Control: one dimension for all fields, trained in float32 and then rounded to 8 bits: up to four times as wide."""

from __future__ import annotations

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.cost import widest_uniform
from pipeline.embeddings.rounded import QuantisedTables

search = None


def derive(given: Evidence) -> Allocation:
    """The widest dimension within the budget; without one, D."""
    dim = given.dim
    if given.budget is not None:
        dim = widest_uniform(build, given.schema, given.dim, given.budget, "int8").dim
    return Allocation("int8", dict.fromkeys(given.schema.names, dim))


def build(schema: Schema, dim: int, allocation: Allocation) -> QuantisedTables:
    """The backbone sees the smaller width, so nothing has to be lifted."""
    return QuantisedTables(schema, allocation.dims, max(allocation.dims.values()), bits=8)
