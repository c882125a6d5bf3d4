"""AUC, logloss and calibration of predictions, and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy import stats

from pipeline.metrics.auc import _by_label, _placements

CELLS = 1 << 14


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % t-interval over seeds; the latter two are None for a single seed."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) == 1:
        return {"mean": mean, "sd": None, "interval": None, "values": [mean]}
    sd = float(array.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(array) - 1)) * sd / len(array) ** 0.5
    return {"mean": mean, "sd": sd, "interval": [mean - half, mean + half], "values": array.tolist()}


def paired_bootstrap(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, rng: np.random.Generator, resamples: int
) -> dict[str, Any]:
    """Difference in AUC of two sets of models on the same rows, averaged over seeds.

    Rows are resampled with Poisson(1) weights, the same for all models. This is the uncertainty that the test
    rows bring in; that of the seeds is seen in the spread over seeds.

    The cost is a sort for each model, whatever the number of resamples. An AUC is the mean over the positives of the
    share of negatives below (see `_placements`), and alike over the negatives; under weights it is the two weighted
    means less the AUC, up to a term of order 1/n, where the spread of the resamples is of order 1/sqrt(n).
    Source: DeLong, DeLong, Clarke-Pearson 1988, whose variance this is in the limit of many resamples. And weights
    of rows that change the difference alike count only in sum, which is a Poisson number itself.

    NOTE[DIFF]: a bootstrap by the book would sort out every resample's AUC again, which takes minutes for a million
    rows and hours for ten. The intervals agree within their own noise.

    Args:
        labels: (n,) 0 or 1.
        a, b: (seeds, n) scores.

    Returns:
        ``auc_difference`` a - b, its 95 % percentile ``interval``, and a two-sided ``p_value``.
    """
    signs = [1 / len(a)] * len(a) + [-1 / len(b)] * len(b)
    by_positive, by_negative = (np.zeros(len(group)) for group in _by_label(labels, labels))
    with ThreadPoolExecutor(2) as threads:  # each needs some arrays of n
        models = [*a, *b]
        for sign, (above, below) in zip(signs, threads.map(lambda s: _placements(labels, s), models), strict=True):
            by_positive += sign * above
            by_negative += sign * below
    difference = float(by_positive.mean())
    drawn = _weighted_means(by_positive, rng, resamples) + _weighted_means(by_negative, rng, resamples) - difference
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = min((drawn <= 0).mean(), (drawn >= 0).mean())
    p_value = min(1.0, 2 * max(float(tail), 1 / (resamples + 1)))
    return {"auc_difference": difference, "interval": [float(low), float(high)], "p_value": p_value}


def _weighted_means(values: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """(resamples,) means of the values under Poisson(1) weights.

    Of more than CELLS values, those within a cell of 1/CELLS of their range count as equal.
    """
    counts = np.ones(len(values), dtype=np.int64)
    low, high = values.min(), values.max()
    if len(values) > CELLS and high > low:
        cells = ((values - low) * ((CELLS - 1) / (high - low))).astype(np.int64)
        counts = np.bincount(cells, minlength=CELLS)
        sums = np.bincount(cells, weights=values, minlength=CELLS)
        values, counts = sums[counts > 0] / counts[counts > 0], counts[counts > 0]
    means = np.empty(resamples)
    for r in range(resamples):
        weights = rng.poisson(counts)
        while not weights.any():
            weights = rng.poisson(counts)
        means[r] = values @ weights / weights.sum()
    return means
