import numpy as np
import pytest
from scipy import stats

from pipeline.reporting.statistics import agreement, average_ranks, holm, mean_height, paired


def test_a_paired_test_is_a_t_test_of_the_differences() -> None:
    a, b = [0.81, 0.82, 0.84, 0.80], [0.80, 0.82, 0.81, 0.79]
    found = paired(a, b)
    by_hand = stats.ttest_1samp(np.subtract(a, b), 0)
    low, high = by_hand.confidence_interval()
    assert found["mean"] == pytest.approx(0.0125)
    assert found["interval"] == pytest.approx([low, high]) and found["p_value"] == pytest.approx(by_hand.pvalue)


@pytest.mark.parametrize(("a", "b"), [([0.75], [0.5]), ([0.75, 0.5], [0.5, 0.25])])
def test_one_seed_or_no_variation_gives_no_interval(a: list[float], b: list[float]) -> None:
    assert paired(a, b) == {"mean": 0.25, "interval": None, "p_value": None}


def test_figures_of_different_seeds_are_not_paired() -> None:
    with pytest.raises(ValueError, match="however 2 and 3"):
        paired([1, 2], [1, 2, 3])


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
    assert mean_height([1, 10], [0.0, 1.0], 1, 100) == pytest.approx(0.75)  # goes on at its last height
    with pytest.raises(ValueError, match="range of positive numbers"):
        mean_height([1, 2], [0, 1], 5, 5)
