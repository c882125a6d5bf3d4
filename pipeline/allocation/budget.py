"""Budgets in bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NO_CANDIDATE = int(np.iinfo(np.int64).max)  # the price that fills the rows of fields with fewer candidates
DEFAULT_SHARE = 0.25  # of the full tables' bytes; the limit of methods that need one, if none is set


class TooFewBytes(ValueError):
    """No allocation of a method fits the budget; the message names the fewest possible bytes."""


def largest(size: Callable[[int], int], most: int, limit: int, method: str) -> int:
    """The largest number whose size is within a limit.

    Args:
        size: bytes of a number; must not fall as the number rises.
        most: largest number to try, from 1.
        limit: bytes.
        method: name for the error message.

    Raises:
        TooFewBytes: naming the size of 1, if it exceeds the limit.
    """
    least = size(1)
    if least > limit:
        raise TooFewBytes(f"{method}: {limit:,} bytes are too few, the least is {least:,}; raise the budget")
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle - 1)
    return low


def in_bytes(budget: float, full_bytes: int) -> int:
    """The bytes of a budget as params.yaml states it.

    Args:
        budget: bytes, a whole number above 1; or a share of ``full_bytes``, above 0.0 and up to 1.0, rounded down.
        full_bytes: bytes of the full tables.

    Raises:
        ValueError: if the budget is neither.
    """
    if type(budget) is int and budget > 1:
        return budget
    if type(budget) is float and 0 < budget <= 1:
        return int(budget * full_bytes)
    raise ValueError(
        f"a budget must be a whole number of bytes above 1, or a share of the full tables' {full_bytes:,} bytes with a "
        f"decimal point, above 0.0 and up to 1.0, got {budget!r}"
    )
