"""Metrics of chances of several kinds, against loops over rows and against derivatives."""

import math

import numpy as np
import pytest

from pipeline.metrics import choice
from pipeline.metrics.probability import calibration_error

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(400, 4)).astype(np.float32)
LABELS = RNG.choice(4, 400, p=[0.6, 0.25, 0.05, 0.1]).astype(np.float32)


def chances(row: np.ndarray) -> list[float]:
    parts = [math.exp(logit) for logit in row.tolist()]
    return [part / sum(parts) for part in parts]


def weighted(weights: np.ndarray) -> float:
    """R^2 of rows with weights, in plain Python."""
    total = weights.sum()
    loss = sum(w * -math.log(chances(row)[int(y)]) for w, row, y in zip(weights, LOGITS, LABELS, strict=True)) / total
    shares = [weights[kind == LABELS].sum() / total for kind in range(4)]
    return 1 - loss / sum(-share * math.log(share) for share in shares)


def test_r_squared_is_the_share_of_the_entropy_that_the_chances_explain() -> None:
    assert choice.r_squared(LABELS, LOGITS) == pytest.approx(weighted(np.ones(400)), rel=1e-9)
    shares = np.bincount(LABELS.astype(int)) / 400
    assert choice.r_squared(LABELS, np.log(shares)[None].repeat(400, 0)) == pytest.approx(0, abs=1e-12)
    assert choice.r_squared(LABELS, 50 * np.eye(4)[LABELS.astype(int)]) == pytest.approx(1, abs=1e-12)
    assert np.isnan(choice.r_squared(np.ones(5), LOGITS[:5]))


def test_the_losses_are_finite_where_a_softmax_would_be_zero() -> None:
    logits = np.array([[1000.0, 0, 0, 0]])
    assert choice.losses(np.array([1]), logits).tolist() == [1000]
    assert choice.losses(np.array([0]), logits).tolist() == [0]


def test_the_influence_of_a_row_is_the_derivative_in_its_weight() -> None:
    influence = choice.r_squared_influence(LABELS, LOGITS)
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    step = 1e-5
    for row in (0, 7, int(np.flatnonzero(LABELS == 2)[0])):
        more, less = np.ones(400), np.ones(400)
        more[row], less[row] = 1 + step, 1 - step
        assert 400 * (weighted(more) - weighted(less)) / (2 * step) == pytest.approx(influence[row], rel=1e-4)
    assert np.isnan(choice.r_squared_influence(np.ones(5), LOGITS[:5])).all()


def test_the_influence_gives_the_standard_deviation_of_r_squared() -> None:
    own = np.sqrt(np.square(choice.r_squared_influence(LABELS, LOGITS)).sum()) / 400
    draws = [RNG.integers(0, 400, 400) for _ in range(500)]
    assert np.std([choice.r_squared(LABELS[d], LOGITS[d]) for d in draws]) == pytest.approx(own, rel=0.15)


def test_the_calibration_error_is_the_mean_of_one_kind_against_the_others() -> None:
    of_kinds = []
    for kind in range(4):
        p = np.array([chances(row)[kind] for row in LOGITS])
        of_kinds.append(calibration_error(kind == LABELS, np.log(p / (1 - p))))
    assert choice.calibration_error(LABELS, LOGITS) == pytest.approx(np.mean(of_kinds), abs=1e-6)
    drawn = np.array([RNG.choice(4, p=chances(row)) for row in LOGITS.repeat(50, 0)])
    assert choice.calibration_error(drawn, LOGITS.repeat(50, 0)) < 0.015
