"""A line of the matrix: one kind of disturbance, tried in several cases."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.faults.bench import Bench, Problems

Case = Callable[[Bench], Problems]


@dataclass(frozen=True)
class Line:
    """A kind of disturbance.

    Args:
        cases: for a number of kills, and a source of random numbers.
        missing: why it cannot be tried here; empty if it can.
    """

    cases: Callable[[int, random.Random], Iterable[Case]]
    missing: Callable[[], str] = str


def told(case: Case) -> str:
    """What a case does, in one line, from its arguments."""
    function = getattr(case, "func", case)
    given = [f"{word:.3f}" if isinstance(word, float) else str(word) for word in getattr(case, "args", ())]
    return " ".join([function.__name__, *given])
