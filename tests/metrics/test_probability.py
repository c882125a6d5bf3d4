"""Logloss and calibration of logits."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from pipeline.metrics.probability import calibration_error, logloss


@pytest.fixture
def predictions() -> tuple[np.ndarray, np.ndarray]:
    """Labels that are drawn as the logits say, which have many ties."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=2000).round(1)
    return (rng.random(2000) < 1 / (1 + np.exp(-logits))).astype(np.uint8), logits


def test_logloss_equals_the_reference(predictions: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = predictions
    assert logloss(labels, logits) == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-logits))))


def test_logloss_of_certain_and_wrong_is_finite() -> None:
    assert logloss(np.array([0, 1]), np.array([1000.0, -1000.0])) == 1000


def test_calibration_error_of_hand_worked_numbers() -> None:
    """Two bins of two rows: |1/2 - 0.25| and |1 - 0.9|, each of half of the rows."""
    logits = np.log([0.25 / 0.75, 0.25 / 0.75, 9, 9])
    assert calibration_error(np.array([0, 1, 1, 1]), logits, bins=2) == pytest.approx((0.25 + 0.1) / 2)


def test_calibration_error_sees_a_shift_and_no_order_of_the_rows(predictions: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = predictions
    assert calibration_error(labels, logits) < 0.04 < calibration_error(labels, logits + 1)
    order = np.random.default_rng(1).permutation(2000)
    assert calibration_error(labels[order], logits[order]) == pytest.approx(calibration_error(labels, logits))
    assert np.isnan(calibration_error(labels, np.where(order == 3, np.nan, logits)))
