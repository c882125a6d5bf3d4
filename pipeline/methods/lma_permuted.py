"""Null control of LMA: the signatures of each field's values are permuted, and nothing else differs.

So unrelated values share numbers. The advantage of LMA over this control is due to its similarities.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.embeddings import minhash_memory
from pipeline.embeddings.minhash_memory import build, find, permuted

__all__ = ["build", "derive", "find"]


@wraps(minhash_memory.derive)  # so the options are the same
def derive(evidence: Evidence, **options: Any) -> Allocation:
    """LMA's allocation with permuted signatures."""
    return permuted(minhash_memory.derive(evidence, **options), evidence.seed)
