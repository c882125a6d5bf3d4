"""AUC, logloss and calibration of predictions, and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy import stats

CELLS = 1 << 14


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, exact: the probability that a positive scores above a negative, ties counting half.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) any monotone score.
    """
    positives, negatives = (np.sort(chosen) for chosen in _by_label(labels, scores))
    if np.isnan(positives[-1]) or np.isnan(negatives[-1]):
        return float("nan")
    twice = sum(int(np.searchsorted(negatives, positives, side).sum()) for side in ("left", "right"))
    return twice / (2 * len(positives) * len(negatives))


def _by_label(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of the positive and of the negative rows."""
    labels, values = np.asarray(labels).astype(bool), np.asarray(values)
    positives, negatives = values[labels], values[~labels]
    if not len(positives) or not len(negatives):
        raise ValueError(
            "AUC needs rows of both labels, however there are "
            f"positives={len(positives)} and negatives={len(negatives)}"
        )
    return positives, negatives


def logloss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean of -log(probability of the label), in nats, from logits (n,), without overflow."""
    logits = np.asarray(logits, dtype=np.float64)
    return float(np.mean(np.logaddexp(0, logits) - logits * np.asarray(labels)))


def calibration_error(labels: np.ndarray, logits: np.ndarray, bins: int = 20) -> float:
    """Expected calibration error: mean |share of positives - mean probability| over bins of equal mass.

    Equal logits share a bin, so that the order of the rows does not matter.
    """
    logits = np.asarray(logits, dtype=np.float64)
    excess = np.asarray(labels, dtype=np.float64) - np.exp(-np.logaddexp(0, -logits))
    below = stats.rankdata(logits, method="min").astype(np.int64) - 1  # rows with a smaller logit
    return float(np.abs(np.bincount(below * bins // len(logits), weights=excess)).sum() / len(logits))


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


def _placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every positive the share of negatives below it, for every negative that of positives above; ties half."""
    groups = _by_label(labels, scores)
    orders = [np.argsort(group) for group in groups]
    positives, negatives = (group[order] for group, order in zip(groups, orders, strict=True))
    places = []
    for order, own, other in ((orders[0], positives, negatives), (orders[1], negatives, positives)):
        below = np.searchsorted(other, own, "left") + np.searchsorted(other, own, "right")
        place = np.empty(len(own))
        place[order] = below / (2 * len(other))
        places.append(place)
    return places[0], 1 - places[1]


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
