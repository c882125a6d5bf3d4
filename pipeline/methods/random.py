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
    """Every allocation whose bytes lie within `TOLERANCE` of ``given.match`` is equally probable.

    With nothing to match, every one of at most `TOLERANCE` less than the limit.
    """
    if given.match is not None:
        low, high = int(given.match * (1 - TOLERANCE)), int(given.match * (1 + TOLERANCE))
    else:
        low, high = int(given.limit * (1 - TOLERANCE)), given.limit
    chosen = sample(given.prices, low, high, np.random.default_rng(given.seed))
    dims = {name: int(c[n]) for name, c, n in zip(given.schema.names, given.candidates, chosen, strict=True)}
    return Allocation("random", dims)


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
