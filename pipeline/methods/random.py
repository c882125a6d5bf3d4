"""Control: dimensions drawn at random, at equal bytes; one draw per seed, none selected."""

import numpy as np

from pipeline.allocation import Allocation
from pipeline.choice import sample
from pipeline.embeddings import MixedTables
from pipeline.evidence import Evidence
from pipeline.schema import Schema

search = None
TOLERANCE = 0.02  # of the bytes to be matched


def derive(given: Evidence) -> Allocation:
    """Every allocation whose bytes lie within `TOLERANCE` of ``given.match`` is equally probable."""
    if given.match is None:
        raise ValueError("the random control needs the bytes of the allocation that it is compared with")
    low, high = int(given.match * (1 - TOLERANCE)), int(given.match * (1 + TOLERANCE))
    if given.budget is not None:
        high = min(high, given.budget)
    chosen = sample(given.prices, low, high, np.random.default_rng(given.seed))
    dims = {name: int(c[n]) for name, c, n in zip(given.schema.names, given.candidates, chosen, strict=True)}
    return Allocation("random", dims)


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
