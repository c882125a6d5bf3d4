"""Control: one dimension for all fields, the one whose tables come nearest in bytes, or fill a budget."""

from pipeline.allocation import Allocation
from pipeline.budget import nearest_uniform, widest_uniform
from pipeline.embeddings import MixedTables
from pipeline.evidence import Evidence
from pipeline.schema import Schema

search = None


def derive(given: Evidence) -> Allocation:
    """The dimension nearest to ``given.match`` bytes; the widest within the limit if there is nothing to match."""
    if given.match is not None:
        chosen = nearest_uniform(given.schema, given.dim, given.match)
    else:
        chosen = widest_uniform(build, given.schema, given.dim, given.limit)
    return Allocation("uniform", dict.fromkeys(given.schema.names, chosen.dim))


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    """Plain tables; the backbone sees the smaller width, so nothing has to be lifted."""
    return MixedTables(schema, allocation.dims, max(allocation.dims.values()))
