"""Area under the ROC curve, and the influence of each row on it."""

from __future__ import annotations

import numpy as np


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The exact share of pairs in which the positive row scores above the negative one; ties count half.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) larger for rows that are more likely to be positive.

    Returns:
        AUC; NaN if a score is NaN.

    Raises:
        ValueError: if all labels are equal.
    """
    positives, negatives = (np.sort(chosen) for chosen in _by_label(labels, scores))
    if np.isnan(positives[-1]) or np.isnan(negatives[-1]):
        return float("nan")
    twice = sum(int(np.searchsorted(negatives, positives, side).sum()) for side in ("left", "right"))
    return twice / (2 * len(positives) * len(negatives))


def auc_of_groups(positives: np.ndarray, negatives: np.ndarray) -> float:
    """`auc` of rows that are counted by group; the rows of a group have equal scores.

    Args:
        positives, negatives: (g,) number of rows of label 1 and of label 0 in each group, by rising score.

    Raises:
        ValueError: if all labels are equal.
    """
    p, n = positives.sum(), negatives.sum()
    if not p or not n:
        raise _one_label(p, n)
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / p / n)


def auc_influence(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The influence (n,) of each row on the AUC: sum(influence**2) / n**2 is DeLong's variance of the AUC.

    The influence is the placement of the row (see `placements`) minus the AUC, divided by the share of rows with its
    label. The factor sqrt(m / (m - 1)), for m rows of this label, makes the variance unbiased. The influence of a
    label's only row is NaN, because one row does not tell how much such rows vary.

    Source: DeLong, DeLong, Clarke-Pearson 1988, eq. 5 and 6.

    Args:
        labels, scores: see `auc`.

    Raises:
        ValueError: if all labels are equal.
    """
    labels = np.asarray(labels).astype(bool)
    influence = np.empty(len(labels))
    for chosen, placement in zip((labels, ~labels), placements(labels, scores), strict=True):
        m = len(placement)
        correction = (m / (m - 1)) ** 0.5 if m > 1 else float("nan")
        influence[chosen] = (placement - placement.mean()) * (len(labels) / m * correction)
    return influence


def placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The placements of the positive and of the negative rows.

    The placement of a positive row is the share of negative rows below it, that of a negative row the share of positive
    rows above it; ties count half.

    Args:
        labels, scores: see `auc`.

    Raises:
        ValueError: if all labels are equal.
    """
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


def _by_label(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of the positive and of the negative rows."""
    labels, values = np.asarray(labels).astype(bool), np.asarray(values)
    positives, negatives = values[labels], values[~labels]
    if not len(positives) or not len(negatives):
        raise _one_label(len(positives), len(negatives))
    return positives, negatives


def _one_label(positives: int, negatives: int) -> ValueError:
    return ValueError(f"AUC needs rows of both labels, got {positives:.0f} of label 1 and {negatives:.0f} of label 0")
