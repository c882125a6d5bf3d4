"""AUC, logloss and calibration of predictions, and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, exact: the probability that a positive scores above a negative, ties counting half.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) any monotone score.
    """
    labels = np.asarray(labels).astype(bool)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        raise ValueError(f"AUC needs rows of both labels, however there are {positives=} and {negatives=}")
    ranks = stats.rankdata(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


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

    Args:
        labels: (n,) 0 or 1.
        a, b: (seeds, n) scores.

    Returns:
        ``auc_difference`` a - b, its 95 % percentile ``interval``, and a two-sided ``p_value``.
    """
    models = [_Sorted(labels, scores) for scores in (*a, *b)]
    signs = np.array([1 / len(a)] * len(a) + [-1 / len(b)] * len(b))
    difference = float(signs @ [model.auc(np.ones(len(labels))) for model in models])
    drawn = np.empty(resamples)
    for r in range(resamples):
        weights = _weights(labels, rng)
        drawn[r] = signs @ [model.auc(weights) for model in models]
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = min((drawn <= 0).mean(), (drawn >= 0).mean())
    p_value = min(1.0, 2 * max(float(tail), 1 / (resamples + 1)))
    return {"auc_difference": difference, "interval": [float(low), float(high)], "p_value": p_value}


def _weights(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Poisson(1) weights that leave rows of both labels."""
    positive = np.asarray(labels).astype(bool)
    if positive.all() or not positive.any():
        raise ValueError(f"AUC needs rows of both labels, however all {len(labels)} rows have label {int(positive[0])}")
    while True:
        weights = rng.poisson(1.0, len(labels)).astype(np.float64)
        if weights[positive].any() and weights[~positive].any():
            return weights


class _Sorted:
    """One model's predictions, sorted once; AUC under any weights of the rows, ties counting half."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        self.order = np.argsort(scores, kind="stable")
        ordered = scores[self.order]
        self.positive = np.asarray(labels)[self.order].astype(bool)
        self.starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def auc(self, weights: np.ndarray) -> float:
        weights = weights[self.order]
        positive = np.add.reduceat(weights * self.positive, self.starts)
        negative = np.add.reduceat(weights * ~self.positive, self.starts)
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))
