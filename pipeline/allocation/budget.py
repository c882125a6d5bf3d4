"""Budgets in bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

NO_CANDIDATE = int(np.iinfo(np.int64).max)  # price where a field has fewer candidates than others


class TooFewBytes(ValueError):
    """A budget that nothing which a method can choose keeps; the message names the least bytes that something does."""


def largest(size: Callable[[int], int], most: int, limit: int, method: str) -> int:
    """The largest number from 1 to ``most`` whose ``size`` in bytes, which rises with it, is within ``limit``.

    Raises:
        TooFewBytes: if even that of 1 is not; says how much it is.
    """
    least = size(1)
    if least > limit:
        raise TooFewBytes(f"{method}: {limit:,} bytes are too few, the least is {least:,}; raise the budget")
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle - 1)
    return low


def in_bytes(budget: Any, full_bytes: int) -> int:
    """A budget as written by a person, in bytes.

    Args:
        budget: a whole number above 1 is bytes; a fraction from above 0 to 1.0 is a share of ``full_bytes``,
            rounded down.
        full_bytes: bytes of the full tables.
    """
    if type(budget) is int and budget > 1:
        return budget
    if type(budget) is float and 0 < budget <= 1:
        return int(budget * full_bytes)
    raise ValueError(
        f"budget must be a whole number of bytes above 1, or a share of the full tables' {full_bytes} bytes "
        f"with a decimal point, above 0.0 and up to 1.0, however: {budget!r}"
    )
