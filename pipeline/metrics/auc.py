"""Area under the ROC curve."""

from __future__ import annotations

import numpy as np


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
