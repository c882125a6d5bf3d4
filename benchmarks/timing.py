"""Times of steps that take turns, and tables of these times.

Machines differ, and the same machine differs from minute to minute. So the compared steps take turns in one process,
and they are compared within each round: a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Step = Callable[[int], Any]  # takes the number of the round


def interleave(
    steps: Mapping[str, Step],
    rounds: int,
    warm_up: int = 3,
    fewer: Mapping[str, int] | None = None,
    settle: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Milliseconds of each step in each round (rounds,); NaN where a step had no turn.

    Args:
        steps: by name.
        rounds: number of rounds that count.
        warm_up: number of rounds before those.
        fewer: number of turns of each step that does not have one in every round. The turns are spread over the rounds;
            in the warm-up, such a step has a turn in the last round only.
        settle: waits until all started work is done, e.g. on a GPU, which works asynchronously.
    """
    turns = {name: min(rounds, (fewer or {}).get(name, rounds)) for name in steps}
    for number in range(warm_up):
        for name, step in steps.items():
            if turns[name] == rounds or number == warm_up - 1:
                step(number)
    taken = {name: np.full(rounds, np.nan) for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            if number and number * turns[name] // rounds == (number - 1) * turns[name] // rounds:
                continue
            settle()
            began = time.perf_counter()
            step(warm_up + number)
            settle()
            taken[name][number] = 1e3 * (time.perf_counter() - began)
    return taken


def quartiles(values: np.ndarray) -> dict[str, float]:
    """``median``, ``low`` and ``high`` quartile and number of ``rounds`` of the values that are not NaN."""
    there = values[~np.isnan(values)]
    low, middle, high = np.quantile(there, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "low": low, "high": high, "rounds": len(there)}


def ratio(values: np.ndarray, reference: np.ndarray) -> float:
    """The median over rounds of ``values / reference``."""
    return float(np.nanmedian(values / reference))


def summary(
    taken: Mapping[str, np.ndarray], reference: str, batch_size: int | None = None
) -> dict[str, dict[str, float]]:
    """`quartiles` of each step, its ``ratio`` to the reference, and ``samples/s`` if a batch size is given."""
    entries = {name: quartiles(values) | {"ratio": ratio(values, taken[reference])} for name, values in taken.items()}
    if batch_size is not None:
        for entry in entries.values():
            entry["samples/s"] = 1e3 * batch_size / entry["median"]
    return entries


def target(
    what: str, reached: float | None, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """An entry of the table of targets; ``reached`` and ``met`` are None if it was not measured."""
    low, high = -np.inf if at_least is None else at_least, np.inf if at_most is None else at_most
    met = None if reached is None else bool(low <= reached <= high)
    return {"what": what, "reached": reached, "at_least": at_least, "at_most": at_most, "met": met}


def low_to_high(entry: Mapping[str, float], digits: int = 1) -> str:
    """The quartiles in a table: "28.4 to 36.9"."""
    return f"{entry['low']:.{digits}f} to {entry['high']:.{digits}f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table. Numbers have three significant digits and are aligned right; words are aligned left."""
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
