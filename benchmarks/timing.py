"""Times of steps that take turns, and what is said of them.

Machines differ, and one machine differs from minute to minute. Steps that are compared therefore alternate within one
process, and are compared round by round: a ratio is the median of the ratios within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def interleave(
    steps: Mapping[str, Callable[[int], Any]],
    rounds: int,
    warm_up: int = 3,
    seldom: Mapping[str, int] | None = None,
    settle: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Milliseconds of each step in each round (rounds,); NaN where a step had no turn.

    Args:
        steps: by name; called with the number of the round.
        warm_up: rounds that are not counted; a seldom step runs in the last of them alone.
        seldom: steps that have so many turns only, spread over the rounds.
        settle: waits until all that was begun is done; of a GPU, which works on behind the process's back.
    """
    turns = {name: min(rounds, (seldom or {}).get(name, rounds)) for name in steps}
    for number in range(warm_up):
        for name, step in steps.items():
            if turns[name] == rounds or number == warm_up - 1:
                step(number)
    taken = {name: np.full(rounds, np.nan) for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            if number * turns[name] // rounds == (number - 1) * turns[name] // rounds and number:
                continue
            settle()
            began = time.perf_counter()
            step(warm_up + number)
            settle()
            taken[name][number] = 1e3 * (time.perf_counter() - began)
    return taken


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, quartiles and number of the values that are there."""
    there = values[~np.isnan(values)]
    low, middle, high = np.quantile(there, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "low": low, "high": high, "rounds": len(there)}


def summary(taken: Mapping[str, np.ndarray], reference: str) -> dict[str, dict[str, float]]:
    """`spread` of each step, and ``ratio``: the median over rounds of its time to the reference's."""
    return {name: spread(values) | {"ratio": ratio(values, taken[reference])} for name, values in taken.items()}


def ratio(values: np.ndarray, reference: np.ndarray) -> float:
    """Median of the ratios within a round."""
    return float(np.nanmedian(values / reference))


def target(
    what: str, reached: float | None, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """One line of the table of targets; ``reached`` and ``met`` are None if it was not measured."""
    low, high = -np.inf if at_least is None else at_least, np.inf if at_most is None else at_most
    met = None if reached is None else bool(low <= reached <= high)
    return {"what": what, "reached": reached, "at_least": at_least, "at_most": at_most, "met": met}


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers with three significant figures, words left, numbers right."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(not isinstance(row[c], str) for row in rows) for c in range(len(head))]
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *cells])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        if not np.isfinite(value):
            return ""
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
