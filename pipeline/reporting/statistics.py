"""Statistics of studies: corrected p-values, average ranks, agreement of seeds, the mean height of a curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for a family of tests (Holm 1979); None stays None and does not count as a test."""
    tested = [i for i, p in enumerate(p_values) if p is not None]
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, i in enumerate(sorted(tested, key=lambda i: p_values[i] or 0.0)):
        highest = max(highest, min(1.0, (len(tested) - place) * (p_values[i] or 0.0)))
        corrected[i] = highest
    return corrected


def average_ranks(scores: np.ndarray) -> np.ndarray:
    """(methods,) mean rank over the settings, 1 is the best; tied methods share the mean of their ranks.

    Args:
        scores: (settings, methods), higher is better.
    """
    return np.asarray(stats.rankdata(-np.asarray(scores, dtype=float), axis=1).mean(0))


def agreement(choices: np.ndarray) -> dict[str, float | None]:
    """Agreement of several seeds: ``pearson`` and ``spearman``, correlations averaged over pairs of seeds.

    A seed that chose the same value for every field has no correlation with others. The mean is None if no pair has a
    correlation.

    Args:
        choices: (seeds, fields), e.g. dimensions.
    """
    choices = np.asarray(choices, dtype=float)
    correlations: dict[str, list[float]] = {"pearson": [], "spearman": []}
    for i in range(len(choices)):
        for j in range(i):
            if np.ptp(choices[i]) and np.ptp(choices[j]):
                correlations["pearson"].append(float(np.corrcoef(choices[i], choices[j])[0, 1]))
                correlations["spearman"].append(float(stats.spearmanr(choices[i], choices[j]).statistic))
    return {name: float(np.mean(values)) if values else None for name, values in correlations.items()}


def mean_height(x: Sequence[float], y: Sequence[float], low: float, high: float) -> float:
    """Mean height of a curve over log x from ``low`` to ``high``: the area under it, divided by the width.

    The curve is linear in log x between its points, and constant beyond the first and the last one.

    Args:
        x, y: the points, in any order.
        low, high: the range of x.

    Raises:
        ValueError: if the range is empty, or an x is not positive.
    """
    if not 0 < low < high or min(x) <= 0:
        raise ValueError(f"need 0 < low < high and positive x, got {low=}, {high=}, smallest x {min(x)}")
    order = np.argsort(x)
    at = np.log(np.asarray(x, dtype=float)[order])
    heights = np.asarray(y, dtype=float)[order]
    inner = at[(at > np.log(low)) & (at < np.log(high))]
    grid = np.concatenate([[np.log(low)], inner, [np.log(high)]])
    return float(np.trapezoid(np.interp(grid, at, heights), grid) / (grid[-1] - grid[0]))
