"""Control: dimensions drawn at random, at equal bytes; one draw per seed, none selected."""

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.draw import sample
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Schema
from pipeline.embeddings.mixed import MixedTables

search = None
TOLERANCE = 0.02  # of the bytes to be matched


def derive(given: Evidence) -> Allocation:
    """Every allocation whose bytes lie within `TOLERANCE` of ``given.match`` is equally probable.

    With nothing to match, every one that is at most so much below the limit, or, where there is none, further below.
    """
    if given.match is not None:
        windows = [(int(given.match * (1 - TOLERANCE)), int(given.match * (1 + TOLERANCE)))]
    else:
        windows = [(int(given.limit * (1 - below)), given.limit) for below in (TOLERANCE, 0.1, 0.5, 1.0)]
    for low, high in windows:
        try:
            chosen = sample(given.prices, low, high, np.random.default_rng(given.seed))
            break
        except ValueError:
            if (low, high) == windows[-1]:
                raise
    dims = {name: int(c[n]) for name, c, n in zip(given.schema.names, given.candidates, chosen, strict=True)}
    return Allocation("random", dims)


def build(schema: Schema, dim: int, allocation: Allocation) -> MixedTables:
    return MixedTables(schema, allocation.dims, dim)
