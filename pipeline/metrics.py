"""AUC, logloss and calibration of predictions, and their intervals."""

from __future__ import annotations

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
