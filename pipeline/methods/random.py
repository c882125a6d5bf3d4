"""Control: random dimensions of equal bytes; one draw per seed, without selection."""

from __future__ import annotations

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.draw import sample, sample_below
from pipeline.allocation.evidence import Evidence

TOLERANCE = 0.02  # relative, of the bytes to match


def derive(evidence: Evidence) -> Allocation:
    """A random allocation whose bytes are within `TOLERANCE` of ``evidence.match``; all of these are equally probable.

    Without bytes to match, the allocation fills the limit; see `sample_below`.
    """
    if evidence.match is None:
        drawn = sample_below(evidence.prices, evidence.limit, lambda: np.random.default_rng(evidence.seed))
    else:
        low, high = int(evidence.match * (1 - TOLERANCE)), int(evidence.match * (1 + TOLERANCE))
        drawn = sample(evidence.prices, low, high, np.random.default_rng(evidence.seed))
    return evidence.chosen(drawn)
