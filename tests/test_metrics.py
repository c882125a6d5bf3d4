import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from pipeline.metrics import bootstrap as metrics
from pipeline.metrics.auc import auc
from pipeline.metrics.bootstrap import interval, paired_bootstrap
from pipeline.metrics.probability import calibration_error, logloss


@pytest.fixture()
def predictions():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=2000).round(1)  # with many ties
    return (rng.random(2000) < 1 / (1 + np.exp(-logits))).astype(np.uint8), logits, rng


def test_auc_and_logloss_equal_the_references(predictions) -> None:
    labels, logits, _ = predictions
    assert auc(labels, logits) == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert logloss(labels, logits) == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-logits))))


@pytest.mark.parametrize("decimals", [0, 1, 9], ids=["three values", "many ties", "no ties"])
def test_auc_is_the_share_of_pairs_in_order(decimals) -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=301).round(decimals).astype(np.float32)
    labels = rng.random(301) < 0.2
    pairs = scores[labels][:, None] - scores[~labels]
    assert auc(labels, scores) == ((pairs > 0).sum() + (pairs == 0).sum() / 2) / pairs.size
    assert np.isnan(auc(labels, np.where(np.arange(301) == 7, np.nan, scores)))


def test_logloss_of_certain_and_wrong_is_finite() -> None:
    assert logloss(np.array([0, 1]), np.array([1000.0, -1000.0])) == 1000


def test_one_label_has_no_auc() -> None:
    with pytest.raises(ValueError, match="both labels"):
        auc(np.ones(3), np.arange(3))


def test_calibration_error_sees_a_shift(predictions) -> None:
    labels, logits, _ = predictions
    assert calibration_error(labels, logits) < 0.04 < calibration_error(labels, logits + 1)


def test_interval_of_hand_worked_numbers() -> None:
    summary = interval([1.0, 2.0, 3.0])
    assert (summary["mean"], summary["sd"]) == (2, 1)
    assert summary["interval"] == pytest.approx([2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5], abs=1e-4)
    assert interval([1.0])["sd"] is None


def by_the_book(labels, a, b, rng, resamples):
    """Interval of the difference in AUC under Poisson(1) weights, from all pairs of rows."""
    ordered = [np.sign(s[labels == 1][:, None] - s[labels == 0]) / 2 + 0.5 for s in (*a, *b)]
    pairs = np.mean(ordered[: len(a)], axis=0) - np.mean(ordered[len(a) :], axis=0)
    weights = [rng.poisson(1, (resamples, n)) for n in pairs.shape]
    drawn = ((weights[0] @ pairs) * weights[1]).sum(1) / (weights[0].sum(1) * weights[1].sum(1))
    return np.quantile(drawn, [0.025, 0.975])


@pytest.mark.parametrize("decimals", [0, 9], ids=["heavy ties", "no ties"])
def test_bootstrap_equals_one_by_the_book(decimals) -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=600)
    labels = (rng.random(600) < 1 / (1 + np.exp(1 - logits))).astype(np.uint8)
    a, b = ((logits + noise * rng.normal(size=(2, 600))).round(decimals) for noise in (0.8, 1.0))
    low, high = by_the_book(labels, a, b, np.random.default_rng(0), 20_000)
    found = paired_bootstrap(labels, a, b, np.random.default_rng(1), 20_000)
    assert found["auc_difference"] == pytest.approx(
        np.mean([auc(labels, s) for s in a]) - np.mean([auc(labels, s) for s in b]), abs=1e-12
    )
    assert found["interval"] == pytest.approx([low, high], abs=0.03 * (high - low))


def test_bootstrap_has_the_spread_of_delong_whatever_the_cells(monkeypatch) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=5000)
    labels = rng.random(5000) < 1 / (1 + np.exp(1 - logits))
    a, b = (logits + noise * rng.normal(size=5000) for noise in (0.8, 1.0))
    orders = [np.sign(s[labels][:, None] - s[~labels]) / 2 + 0.5 for s in (a, b)]
    difference = orders[0] - orders[1]
    variance = difference.mean(1).var() / labels.sum() + difference.mean(0).var() / (~labels).sum()
    for cells in (1 << 14, 1 << 8):
        monkeypatch.setattr(metrics, "CELLS", cells)
        found = paired_bootstrap(labels, a[None], b[None], np.random.default_rng(1), 4000)
        width = found["interval"][1] - found["interval"][0]
        assert width == pytest.approx(2 * 1.96 * variance**0.5, rel=0.07)
        assert found["auc_difference"] == pytest.approx(difference.mean(), abs=1e-12)


def test_bootstrap_needs_both_labels(predictions) -> None:
    _, logits, rng = predictions
    with pytest.raises(ValueError, match="both labels, however there are positives=2000 and negatives=0"):
        paired_bootstrap(np.ones(2000), logits[None], logits[None], rng, 5)


def test_bootstrap_finds_a_difference_and_none_where_there_is_none(predictions) -> None:
    labels, logits, rng = predictions
    worse = logits + rng.normal(size=2000)
    found = paired_bootstrap(labels, logits[None], worse[None], rng, 200)
    assert found["interval"][0] > 0 and found["p_value"] < 0.05
    same = paired_bootstrap(labels, logits[None], logits[None], rng, 50)
    assert same["auc_difference"] == 0 and same["interval"] == [0, 0] and same["p_value"] == 1
