"""Metrics of the predicted chances of K kinds, of which one happens: log-loss, McFadden's R^2 and calibration error."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, logsumexp

from pipeline.metrics import probability


def losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(n,) -log(chance of what happened), in nats.

    Args:
        labels: (n,) whole numbers below K.
        logits: (n, K), of which the softmax is the chances.
    """
    chances = log_softmax(logits.astype(np.float64), axis=1)
    return -np.take_along_axis(chances, labels.astype(np.int64)[:, None], 1)[:, 0]


def entropies(labels: np.ndarray) -> np.ndarray:
    """(n,) -log(share of the rows with the same label); their mean is the entropy of the labels."""
    _, kinds, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return -np.log(counts / len(labels))[kinds]


def r_squared(labels: np.ndarray, logits: np.ndarray) -> float:
    """1 - log-loss / entropy of the labels: 0 for a model that knows their shares only, 1 for one that knows all.

    McFadden 1974, "Conditional logit analysis of qualitative choice behavior". NOTE[DIFF]: he compares on the rows that
    the model was fitted to; here the shares are those of the rows that judge it, so it is below 0 for a bad model.

    Args:
        labels, logits: see `losses`.

    Returns:
        R^2; NaN if all labels are the same.
    """
    entropy = entropies(labels).mean()
    return float(1 - losses(labels, logits).mean() / entropy) if entropy else float("nan")


def r_squared_influence(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(n,) the influence of each row on `r_squared`, with mean 0: the derivative in the weight of the row.

    R^2 = 1 - L / H, and the derivatives of L and H are l_i - L and h_i - H, with the rows' losses and entropies.
    """
    loss, entropy = losses(labels, logits), entropies(labels)
    mean_loss, mean_entropy = loss.mean(), entropy.mean()
    if not mean_entropy:
        return np.full(len(loss), np.nan)
    return (mean_loss / mean_entropy * (entropy - mean_entropy) - (loss - mean_loss)) / mean_entropy


def calibration_error(labels: np.ndarray, logits: np.ndarray) -> float:
    """The mean over the kinds of `pipeline.metrics.probability.calibration_error`, one kind against the others.

    Args:
        labels, logits: see `losses`.
    """
    numbers = logits.astype(np.float64)
    errors = []
    for kind in range(numbers.shape[1]):
        against = numbers[:, kind] - logsumexp(np.delete(numbers, kind, 1), axis=1)  # the logit of the kind's chance
        errors.append(probability.calibration_error(labels == kind, against))
    return float(np.mean(errors))
