"""Null control of LMA: the same with the signatures of each field's values permuted, so that sharing means nothing.

LMA owes its similarities only what it has over this one. See `pipeline.signatures.permutation`.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pipeline.allocation import Allocation
from pipeline.evidence import Evidence
from pipeline.plug import Least
from pipeline.schema import Schema
from pipeline.signatures import Bits, allocation, build, observed

__all__ = ["build", "derive", "observe"]


def observe(
    schema: Schema,
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    rows: Annotated[int, Least(1)] = 125_000,
    support: Annotated[int, Least(1)] = 2,
    keys: Annotated[int, Least(1)] = 4,
) -> dict[str, np.ndarray]:
    """Min-hashes of every value's set of training rows; see `pipeline.signatures.observed`."""
    return vars(observed(schema, ids, rng, rows=rows, support=support, keys=keys, permuted=True))


def derive(
    given: Evidence,
    *,
    power: Annotated[int, Least(1)] = 2,
    bits: Bits | None = None,
    share: Annotated[float, Least(0)] = 0.25,
    sign: bool = False,
) -> Allocation:
    """Signatures and memory within the limit; see `pipeline.signatures.allocation`."""
    return allocation("lma_permuted", given, power=power, bits=bits, share=share, sign=sign)
