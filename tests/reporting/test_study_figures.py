"""The figures of a study show its differences and its curves."""

import numpy as np
import pytest
from matplotlib.text import Text

from pipeline.reporting.study_figures import curves, differences


def test_differences_stand_in_panels_under_one_order_of_names_and_leave_out_what_is_missing() -> None:
    panels = {"5%": {"a": (-0.01, [-0.02, 0.0]), "b": (0.02, None)}, "10%": {"a": (0.01, [0.0, 0.02])}}
    figure = differences(panels, "all", "difference in AUC")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    dots = [[tuple(line.get_xydata()[0]) for line in a.lines if line.get_marker() == "o"] for a in (left, right)]
    assert dots == [[(-0.01, 0), (0.02, 1)], [(0.01, 0)]]
    left, _ = differences(panels, "all", "difference in AUC", ordered=True).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["b", "a"]


def test_what_lies_far_below_stands_at_the_edge_with_its_figure() -> None:
    panel = {"a": (0.01, [0.0, 0.02]), "b": (-0.3, [-0.4, -0.2])}
    figure = differences({"5%": panel, "10%": {}}, "all", "AUC", ordered=True)
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim() == pytest.approx((-0.043, 0.023))
    assert [(line.get_marker(), tuple(line.get_xydata()[0])) for line in left.lines if line.get_marker() in "o<"] == [
        ("o", (0.01, 0)),
        ("<", (-0.04, 1)),
    ]
    assert [text.get_text() for text in left.texts] == ["-0.300"]
    flat = differences({"": panel}, "all", "AUC").axes[0]
    assert flat.get_xlim()[0] < -0.4 and not flat.texts


def test_a_curve_is_the_mean_over_seeds_by_size_in_the_range_of_the_seeds() -> None:
    points = {"searched": [(4000, [0.7, 0.8]), (1000, [0.6, 0.64])], "a$b$": [(2000, [0.5])]}
    figure = curves(points, "all$ $", "AUC")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_ylabel() == "AUC" and axes.get_xscale() == "log"
    searched, other = axes.get_lines()
    np.testing.assert_allclose(searched.get_xydata(), [[1000, 0.62], [4000, 0.75]])
    np.testing.assert_allclose(other.get_xydata(), [[2000, 0.5]])
    bands = [{tuple(point) for point in band.get_paths()[0].vertices} for band in axes.collections]
    assert {(1000, 0.6), (1000, 0.64), (4000, 0.7), (4000, 0.8)} <= bands[0]


@pytest.mark.parametrize("name", ["$", r"$\frac$"])
def test_a_setting_may_have_any_name(name: str) -> None:
    figure = differences({name: {name: (0.1, [0.0, 0.2])}}, name, name)
    figure.draw_without_rendering()  # where matplotlib would read the name as a formula
    shown = [text.get_text() for text in figure.findobj(Text) if name in text.get_text().replace("\\$", "$")]
    assert len(shown) >= 2
