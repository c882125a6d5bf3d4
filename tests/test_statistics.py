import numpy as np
import pytest
from scipy import stats

from pipeline.reporting.statistics import agreement, average_ranks, holm, mean_height


def test_holm_corrects_as_worked_by_hand() -> None:
    # Sorted .01, .02, .03, .04 times 4, 3, 2, 1, and never falling: .04, .06, .06, .06.
    assert holm([0.03, None, 0.01, 0.04, 0.02]) == pytest.approx([0.06, None, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([None]) == [None]


def test_ranks_are_averaged_over_settings_and_ties_share_theirs() -> None:
    scores = np.array([[0.9, 0.8, 0.7], [0.5, 0.6, 0.5]])
    assert average_ranks(scores).tolist() == [(1 + 2.5) / 2, (2 + 1) / 2, (3 + 2.5) / 2]


def test_agreement_is_the_mean_over_all_pairs_that_have_a_correlation() -> None:
    same = agreement(np.array([[1, 2, 4], [1, 2, 4], [2, 2, 2]]))
    assert same == {"pearson": pytest.approx(1.0), "spearman": pytest.approx(1.0)}
    choices = np.array([[1, 2, 4, 8], [2, 1, 8, 4], [8, 4, 2, 1]])
    pairs = [(0, 1), (0, 2), (1, 2)]
    by_hand = np.mean([stats.spearmanr(choices[i], choices[j]).statistic for i, j in pairs])
    assert agreement(choices)["spearman"] == pytest.approx(by_hand)
    assert agreement(np.array([[2, 2], [2, 2]])) == {"pearson": None, "spearman": None}


def test_the_height_of_a_curve_is_its_mean_over_the_logarithm() -> None:
    # Straight in log x from 0 at 1 to 1 at 100: a half, and three quarters in its upper half.
    assert mean_height([100, 1], [1.0, 0.0], 1, 100) == pytest.approx(0.5)
    assert mean_height([1, 100], [0.0, 1.0], 10, 100) == pytest.approx(0.75)
    assert mean_height([1, 10], [0.0, 1.0], 1, 100) == pytest.approx(0.75)  # keeps its last height


def test_a_curve_without_a_range_of_positive_numbers_has_no_height() -> None:
    with pytest.raises(ValueError, match="need 0 < low < high and positive x, got low=5, high=5, smallest x 1"):
        mean_height([1, 2], [0, 1], 5, 5)
    with pytest.raises(ValueError, match="smallest x 0"):
        mean_height([0, 2], [0, 1], 1, 2)
