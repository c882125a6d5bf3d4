"""Control: every field has the full dimension D, in a plain table."""

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence


def derive(evidence: Evidence) -> Allocation:
    return evidence.allocation(evidence.dim)
