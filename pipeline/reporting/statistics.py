"""What a few seeds allow to say: paired tests, corrected for their number, ranks, agreement, one number for a curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def paired(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Difference of two methods over the same seeds: a paired t-test, two-sided.

    Args:
        a, b: one figure per seed.

    Returns:
        ``mean`` of a - b, its 95 % ``interval`` and ``p_value``, None where one seed or no variation forbids them.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a paired test needs as many figures of one as of the other, however {len(a)} and {len(b)}")
    difference = np.subtract(a, b)
    mean = float(difference.mean())
    if len(difference) == 1 or not np.ptp(difference):
        return {"mean": mean, "interval": None, "p_value": None}
    tested = stats.ttest_rel(a, b)
    low, high = tested.confidence_interval()
    return {"mean": mean, "interval": [float(low), float(high)], "p_value": float(tested.pvalue)}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm 1979: p-values that hold for all of a family of tests together; None where there was no test."""
    there = [i for i, p in enumerate(p_values) if p is not None]
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, i in enumerate(sorted(there, key=lambda i: p_values[i] or 0.0)):
        highest = max(highest, min(1.0, (len(there) - place) * (p_values[i] or 0.0)))
        corrected[i] = highest
    return corrected


def average_ranks(scores: np.ndarray) -> np.ndarray:
    """(settings, methods) scores, higher is better -> (methods,) mean rank, 1 the best; ties share theirs."""
    return np.asarray(stats.rankdata(-np.asarray(scores, dtype=float), axis=1).mean(0))


def agreement(choices: np.ndarray) -> dict[str, float | None]:
    """How alike the choices of several seeds are: (seeds, fields) -> mean correlation over all pairs of seeds.

    Returns:
        ``pearson`` and ``spearman``; None where no pair has one, because a seed chose alike for all fields.
    """
    choices = np.asarray(choices, dtype=float)
    found: dict[str, list[float]] = {"pearson": [], "spearman": []}
    for i in range(len(choices)):
        for j in range(i):
            if np.ptp(choices[i]) and np.ptp(choices[j]):
                found["pearson"].append(float(np.corrcoef(choices[i], choices[j])[0, 1]))
                found["spearman"].append(float(stats.spearmanr(choices[i], choices[j]).statistic))
    return {name: float(np.mean(values)) if values else None for name, values in found.items()}


def mean_height(x: Sequence[float], y: Sequence[float], low: float, high: float) -> float:
    """Mean of a curve through points over the logarithm of x from ``low`` to ``high``: its area as one number.

    Between points the curve is straight in log x; beyond them it goes on at the height of the last one.

    Raises:
        ValueError: if there is no range, or an x is not positive.
    """
    if not 0 < low < high or min(x) <= 0:
        raise ValueError(f"a range of positive numbers is needed, however {low=}, {high=}, x from {min(x)}")
    order = np.argsort(x)
    at = np.log(np.asarray(x, dtype=float)[order])
    heights = np.asarray(y, dtype=float)[order]
    inner = at[(at > np.log(low)) & (at < np.log(high))]
    grid = np.concatenate([[np.log(low)], inner, [np.log(high)]])
    return float(np.trapezoid(np.interp(grid, at, heights), grid) / (grid[-1] - grid[0]))
