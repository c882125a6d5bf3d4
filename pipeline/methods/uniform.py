"""Control: one dimension for all fields, the one whose tables come nearest in bytes, or fill a budget."""

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.cost import nearest_uniform, widest_uniform
from pipeline.embeddings.mixed import MixedTables

search = None


def derive(given: Evidence, *, lift: bool = False) -> Allocation:
    """The dimension nearest to ``given.match`` bytes; the widest within the limit if there is nothing to match.

    Args:
        lift: to D, with a projection for each field, as methods with several dimensions have to; otherwise the backbone
            sees the smaller width. Tells what a method owes its dimensions and what the width of its backbone.
    """
    if lift:
        chosen = widest_uniform(_lifted, given.schema, given.dim, given.limit)
    elif given.match is not None:
        chosen = nearest_uniform(given.schema, given.dim, given.match)
    else:
        chosen = widest_uniform(build, given.schema, given.dim, given.limit)
    return Allocation("uniform", dict.fromkeys(given.schema.names, chosen.dim), {"lift": True} if lift else {})


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    """Plain tables, and if they are lifted, projections."""
    lifted = allocation.settings.get("lift", False)
    return MixedTables(schema, allocation.dims, dim if lifted else max(allocation.dims.values()))


def _lifted(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
