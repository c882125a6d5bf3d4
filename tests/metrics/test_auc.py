"""AUC, and what each row has to do with it, against all pairs of a positive and a negative row."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.metrics.auc import auc, auc_influence, auc_of_groups, placements
from pipeline.metrics.difference import row_variance

DECIMALS = pytest.mark.parametrize("decimals", [0, 1, 9], ids=["few values", "many ties", "no ties"])


def scored(rows: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the scores (2, rows) of two models that share what they know."""
    rng = np.random.default_rng(2)
    labels = rng.random(rows) < 0.3
    signal = labels + rng.normal(size=rows)
    return labels, (np.stack([signal, 0.7 * signal]) + rng.normal(size=(2, rows))).round(decimals)


def above(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(positives, negatives) whether the one scores above the other; a half for a tie."""
    pairs = scores[labels][:, None] - scores[~labels]
    return (pairs > 0) + (pairs == 0) / 2


@DECIMALS
def test_auc_is_the_share_of_pairs_in_order(decimals: int) -> None:
    labels, (scores, _) = scored(301, decimals)
    assert auc(labels, scores) == above(labels, scores).mean()
    assert auc(labels.astype(np.uint8), scores.astype(np.float32)) == pytest.approx(auc(labels, scores), abs=1e-4)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert np.isnan(auc(labels, np.where(np.arange(301) == 7, np.nan, scores)))


def test_rows_of_one_label_have_no_auc() -> None:
    for labels, counts in ((np.ones(3), "3 of label 1 and 0 of label 0"), (np.zeros(2), "0 of label 1 and 2 of label")):
        for function in (auc, auc_influence):
            with pytest.raises(ValueError, match=f"AUC needs rows of both labels, got {counts}"):
                function(labels, np.arange(len(labels)))


@DECIMALS
def test_the_place_of_a_row_is_its_share_of_pairs_in_order(decimals: int) -> None:
    labels, (scores, _) = scored(240, decimals)
    positives, negatives = placements(labels, scores)
    np.testing.assert_allclose(positives, above(labels, scores).mean(1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(negatives, above(labels, scores).mean(0), rtol=0, atol=1e-12)


@DECIMALS
def test_the_influence_of_every_row_is_that_of_delong(decimals: int) -> None:
    labels, (scores, _) = scored(240, decimals)
    value, shares = above(labels, scores).mean(), above(labels, scores)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    influence = auc_influence(labels, scores)
    seen = {True: 0, False: 0}
    for row, label in enumerate(labels.tolist()):
        place = shares[seen[True]].mean() if label else shares[:, seen[False]].mean()
        seen[label] += 1
        m = positives if label else negatives
        assert influence[row] == pytest.approx((place - value) * 240 / m * (m / (m - 1)) ** 0.5, abs=1e-9)
    assert influence.sum() == pytest.approx(0, abs=1e-9)


@DECIMALS
def test_the_influence_gives_delongs_variance_of_a_model_and_of_a_difference(decimals: int) -> None:
    labels, scores = scored(240, decimals)

    def delong(of_pairs: np.ndarray) -> float:
        return of_pairs.mean(1).var(ddof=1) / labels.sum() + of_pairs.mean(0).var(ddof=1) / (~labels).sum()

    influences = [auc_influence(labels, each) for each in scores]
    for each, influence in zip(scores, influences, strict=True):
        assert row_variance(influence) == pytest.approx(delong(above(labels, each)), rel=1e-12)
    of_both = row_variance(influences[0] - influences[1])
    assert of_both == pytest.approx(delong(above(labels, scores[0]) - above(labels, scores[1])), rel=1e-12)
    assert of_both < 0.9 * sum(map(row_variance, influences))  # the models err on the same rows


def test_the_influence_is_what_a_little_more_weight_of_the_row_does_to_the_auc() -> None:
    """As statistics define influence; large samples, where the unbiased correction is next to nothing."""
    labels, (scores, _) = scored(2000, 1)
    shares, influence, weight = above(labels, scores), auc_influence(labels, scores), 1e-6
    for row in (0, 5, 17, 1999):
        weights = np.ones(2000)
        weights[row] += 2000 * weight
        positive, negative = weights[labels], weights[~labels]
        moved = (positive @ shares @ negative) / (positive.sum() * negative.sum())
        assert (moved - shares.mean()) / weight == pytest.approx(influence[row], rel=5e-3, abs=1e-6)


def test_the_influence_of_a_single_row_of_a_label_is_unknown() -> None:
    influence = auc_influence(np.array([1, 0, 0, 0]), np.array([0.5, 0.1, 0.2, 0.9]))
    assert np.isnan(influence[0]) and np.abs(influence[1:]).min() > 0


def test_rows_in_groups_have_the_auc_of_their_rows() -> None:
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 50, 30), rng.integers(0, 50, 30)
    scores = np.concatenate([np.repeat(np.arange(30), positives), np.repeat(np.arange(30), negatives)])
    labels = np.repeat([1, 0], [positives.sum(), negatives.sum()])
    assert auc_of_groups(positives, negatives) == pytest.approx(auc(labels, scores), abs=1e-12)
    with pytest.raises(ValueError, match="AUC needs rows of both labels, got 0 of label 1 and 3 of label 0"):
        auc_of_groups(np.array([0, 0]), np.array([1, 2]))
