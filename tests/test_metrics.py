import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from pipeline.metrics import _Sorted, auc, calibration_error, interval, logloss, paired_bootstrap


@pytest.fixture()
def predictions():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=2000).round(1)  # with many ties
    return (rng.random(2000) < 1 / (1 + np.exp(-logits))).astype(np.uint8), logits, rng


def test_auc_and_logloss_equal_the_references(predictions) -> None:
    labels, logits, rng = predictions
    assert auc(labels, logits) == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert logloss(labels, logits) == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-logits))))
    weights = rng.poisson(1, 2000).astype(float)
    expected = roc_auc_score(labels, logits, sample_weight=weights)
    assert _Sorted(labels, logits).auc(weights) == pytest.approx(expected, abs=1e-12)


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


def test_bootstrap_finds_a_difference_and_none_where_there_is_none(predictions) -> None:
    labels, logits, rng = predictions
    worse = logits + rng.normal(size=2000)
    found = paired_bootstrap(labels, logits[None], worse[None], rng, 200)
    assert found["interval"][0] > 0 and found["p_value"] < 0.05
    same = paired_bootstrap(labels, logits[None], logits[None], rng, 50)
    assert same["auc_difference"] == 0 and same["interval"] == [0, 0] and same["p_value"] == 1
