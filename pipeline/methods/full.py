"""Control: every field has the full dimension D, in a plain table."""

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.mixed import MixedTables

search = None


def derive(given: Evidence) -> Allocation:
    return Allocation("full", dict.fromkeys(given.schema.names, given.dim))


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
