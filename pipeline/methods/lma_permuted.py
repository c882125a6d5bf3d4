"""Null control of LMA: the same with the signatures of each field's values permuted, so that sharing means nothing.

LMA owes its similarities only what it has over this one. See `pipeline.signatures.permutation`.
"""

from __future__ import annotations

from typing import Annotated

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.embeddings.minhash_memory import Bits, allocation, build, observe
from pipeline.workflow.plug import Least

__all__ = ["build", "derive", "observe"]


def derive(
    given: Evidence,
    *,
    power: Annotated[int, Least(1)] = 2,
    bits: Bits | None = None,
    share: Annotated[float, Least(0)] = 0.25,
    sign: bool = False,
) -> Allocation:
    """Signatures and memory within the limit; see `pipeline.signatures.allocation`."""
    return allocation("lma_permuted", given, power=power, bits=bits, share=share, sign=sign, permuted=True)
