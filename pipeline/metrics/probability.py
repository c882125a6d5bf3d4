"""Metrics of predicted probabilities: logloss and calibration error."""

from __future__ import annotations

import numpy as np
from scipy import stats


def logloss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean of -log(probability of the label), in nats, computed without overflow.

    Args:
        labels: (n,) 0 or 1.
        logits: (n,).
    """
    logits = np.asarray(logits, dtype=np.float64)
    return float(np.mean(np.logaddexp(0, logits) - logits * np.asarray(labels)))


def calibration_error(labels: np.ndarray, logits: np.ndarray, bins: int = 20) -> float:
    """Expected calibration error: mean of |share of positives - mean probability| over bins of equally many rows.

    Equal logits share a bin, so the order of the rows does not matter.

    Args:
        labels: (n,) 0 or 1.
        logits: (n,).
        bins: number of bins.

    Returns:
        The error; NaN if a logit is NaN.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if np.isnan(logits).any():
        return float("nan")
    excess = np.asarray(labels, dtype=np.float64) - np.exp(-np.logaddexp(0, -logits))
    below = stats.rankdata(logits, method="min").astype(np.int64) - 1  # rows with a smaller logit
    return float(np.abs(np.bincount(below * bins // len(logits), weights=excess)).sum() / len(logits))
