"""Control: one dimension for all fields, the one whose tables come nearest in bytes."""

from pipeline.allocation import Allocation
from pipeline.budget import nearest_uniform
from pipeline.embeddings import MixedTables
from pipeline.evidence import Evidence
from pipeline.schema import Schema

search = None


def derive(given: Evidence) -> Allocation:
    """The dimension nearest to ``given.match`` bytes, or to the budget if there is nothing to match."""
    target = given.match if given.match is not None else given.budget
    if target is None:
        raise ValueError("the uniform control needs the bytes of the allocation that it is compared with, or a budget")
    nearest = nearest_uniform(given.schema, given.dim, target)
    return Allocation("uniform", dict.fromkeys(given.schema.names, nearest.dim))


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    """Plain tables; the backbone sees the smaller width, so nothing has to be lifted."""
    return MixedTables(schema, allocation.dims, max(allocation.dims.values()))
