"""The figures of a sweep show its trials."""

import numpy as np

from pipeline.reporting.sweep_figures import importances, sweep_front, sweep_history

TRIALS = [
    {"trial": 0, "objective": 0.70, "bytes": 5000, "best": False, "ended": "complete"},
    {"trial": 1, "objective": 0.74, "bytes": 4000, "best": True, "ended": "complete"},
    {"trial": 2, "objective": None, "bytes": 9000, "best": False, "ended": "over budget"},
    {"trial": 3, "objective": 0.60, "bytes": 1000, "best": False, "ended": "early"},
    {"trial": 4, "objective": 0.72, "bytes": 2000, "best": True, "ended": "complete"},
]


def test_the_best_trials_are_joined_by_size_and_bear_their_numbers() -> None:
    (axes,) = sweep_front(TRIALS, "AUC", budget=6000).axes
    front, budget = axes.get_lines()
    np.testing.assert_allclose(front.get_xydata(), [[2000, 0.72], [4000, 0.74]])
    assert [text.get_text() for text in axes.texts] == ["4", "1"] and set(budget.get_xdata()) == {6000}
    (others,) = axes.collections
    np.testing.assert_allclose(others.get_offsets(), [[5000, 0.70], [1000, 0.60]])


def test_the_history_shows_the_best_of_whole_trials_so_far() -> None:
    (axes,) = sweep_history(TRIALS, "AUC").axes
    (best,) = axes.get_lines()
    np.testing.assert_allclose(best.get_xydata(), [[0, 0.70], [1, 0.74], [4, 0.74]])
    assert [len(points.get_offsets()) for points in axes.collections] == [3, 1]
    assert not sweep_history(TRIALS[2:3], "AUC").axes[0].get_lines()


def test_importances_have_a_panel_for_each_measure_and_a_bar_for_each_parameter() -> None:
    first, second = importances({"AUC": {"a": 0.7, "b": 0.3}, "bytes": {"b": 1.0}}).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["b", "a"]
    assert [bar.get_width() for bar in first.patches] == [0.3, 0.7]
    assert [bar.get_width() for bar in second.patches] == [1.0, 0]
