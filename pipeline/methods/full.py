"""Control: every field has the full dimension D, in a plain table."""

from pipeline.allocation import Allocation
from pipeline.embeddings import MixedTables
from pipeline.evidence import Evidence
from pipeline.schema import Schema

search = None


def derive(given: Evidence) -> Allocation:
    return Allocation("full", dict.fromkeys(given.schema.names, given.dim))


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
