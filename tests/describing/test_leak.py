"""The AUC of a column alone."""

import random

import numpy as np
import pytest

from pipeline.describing.leak import auc_alone
from tests.describing.columns import column

ROWS = 4000
RNG = np.random.default_rng(0)
LABELS = (RNG.random(ROWS) < 0.3).astype(float)


def test_a_column_that_is_the_label_in_other_words_has_an_auc_of_1() -> None:
    assert auc_alone(column([{0: "no", 1: "yes"}[int(label)] for label in LABELS]), LABELS) == 1
    assert auc_alone(column(LABELS * 100 + RNG.random(ROWS)), LABELS) > 0.99
    assert auc_alone(column([None if label else "seen" for label in LABELS]), LABELS) == 1
    assert auc_alone(column(-LABELS.astype(int)), LABELS) == 1


def test_a_column_that_says_nothing_has_an_auc_of_one_half() -> None:
    assert auc_alone(column([f"row {row}" for row in range(ROWS)]), LABELS) == 0.5
    assert auc_alone(column(RNG.integers(0, 500, ROWS)), LABELS) == pytest.approx(0.5, abs=0.05)


def test_a_column_that_says_something_has_the_auc_of_its_probabilities() -> None:
    kinds = RNG.integers(0, 2, ROWS)
    labels = (RNG.random(ROWS) < np.where(kinds, 0.8, 0.2)).astype(float)
    # of two rows with different labels, the column is right in 0.8 * 0.8, undecided in 2 * 0.8 * 0.2
    assert auc_alone(column(kinds), labels) == pytest.approx(0.8, abs=0.03)


def test_too_few_rows_say_nothing() -> None:
    few = [random.Random(0).choice("ab") for _ in range(60)]
    assert auc_alone(column(few), LABELS[:60]) is None
    assert auc_alone(column(["a"] * ROWS), np.zeros(ROWS)) is None


def test_rows_without_a_label_do_not_count() -> None:
    labels = np.where(np.arange(ROWS) % 3 == 0, np.nan, LABELS)
    assert auc_alone(column(LABELS), labels) == 1
