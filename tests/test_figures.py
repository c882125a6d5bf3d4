"""The figures show what they are given, name what fits without overlap, and come out alike every time."""

import copy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from pipeline.data.schema import Field, Schema
from pipeline.reporting.figures import (
    auc_against_bytes,
    differences,
    dim_against_cardinality,
    importances,
    save,
    sweep_front,
    sweep_history,
    trajectories,
)

REPORT = {
    "dataset": "planted",
    "backbone": "fm",
    "seeds": [0, 1],
    "allocations": {
        "searched": {"auc": {"mean": 0.71, "sd": 0.01, "values": [0.70, 0.72]}, "bytes": 1000},
        "full": {"auc": {"mean": 0.73, "sd": 0.01, "values": [0.72, 0.74]}, "bytes": 9000},
        "random": {
            "auc": {"mean": 0.70, "sd": 0.02, "values": [0.68, 0.72]},
            "bytes": 1000,
            "bytes_values": [990, 1010],
        },
    },
}


def columns(names: list[str], dims: tuple[int, ...] = (2, 8), steps: int = 5) -> dict[str, np.ndarray]:
    rows = [(s, name, d) for s in range(steps) for name in names for d in dims]
    probability = [(d == dims[-1]) * s / steps + (d != dims[-1]) * (1 - s / steps) for s, _, d in rows]
    return {
        "step": np.array([s for s, _, _ in rows]),
        "feature": np.array([name for _, name, _ in rows], dtype=object),
        "candidate_dim": np.array([d for _, _, d in rows]),
        "probability": np.array(probability),
    }


def boxes(figure, axes):
    figure.draw_without_rendering()
    return [Text.get_window_extent(text) for text in axes.texts]  # without the line that leads to the point


def overlap(found) -> bool:
    return any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])


def test_every_field_has_a_panel_with_its_lines_and_its_last_winner() -> None:
    names = [f"C{i}" for i in range(38)] + ["a_field_with_a_very_long_name"]
    figure = trajectories(columns(names))
    panels = figure.axes
    assert len(panels) == 39
    assert [panel.get_title(loc="left") for panel in panels[:2]] == ["C0", "C1"]
    assert len(panels[-1].get_title(loc="left")) <= 18
    assert {panel.get_title(loc="right") for panel in panels} == {"8"}  # 0.8 against 0.2 at the last step
    narrow, wide = panels[0].get_lines()
    np.testing.assert_allclose(wide.get_ydata(), [0, 0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(narrow.get_ydata(), [1, 0.8, 0.6, 0.4, 0.2])


def test_an_empty_trajectory_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        trajectories(columns([]))


def test_points_stand_at_mean_auc_and_bytes_with_one_dot_per_seed() -> None:
    axes = auc_against_bytes(REPORT).axes[0]
    points = {tuple(line.get_xydata()[0]) for line in axes.get_lines() if line.get_marker() == "o"}
    assert points == {(1000, 0.71), (9000, 0.73), (1000, 0.70)}
    dots = [tuple(dot) for collection in axes.collections for dot in collection.get_offsets() if len(dot)]
    assert (990, 0.68) in dots and (1010, 0.72) in dots and (1000, 0.70) in dots


def test_labels_of_equal_points_do_not_cover_each_other() -> None:
    report = copy.deepcopy(REPORT)
    for entry in report["allocations"].values():
        entry["auc"]["mean"], entry["bytes"] = 0.71, 1000
    figure = auc_against_bytes(report)
    assert not overlap(boxes(figure, figure.axes[0]))


def test_one_seed_has_no_spread() -> None:
    report = copy.deepcopy(REPORT) | {"seeds": [0]}
    for entry in report["allocations"].values():
        entry["auc"] = {"mean": 0.7, "sd": None, "values": [0.7]}
        entry.pop("bytes_values", None)
    assert "one seed" in auc_against_bytes(report).axes[0].get_title(loc="left")


def test_dimensions_and_planted_ranks_stand_at_their_levels() -> None:
    schema = Schema((Field("a", 10), Field("b", 1000), Field("c", 100)))
    axes = dim_against_cardinality(schema, {"a": 8, "b": 0, "c": 2}, {"a": 2}).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["0 (dropped)", "2", "8"]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[10, 2], [100, 1], [1000, 0]])
    (ring,) = [line for line in axes.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(ring.get_xydata(), [[10, 1]])
    assert {text.get_text() for text in axes.texts} == {"a", "b", "c"}


def test_crowded_fields_are_named_without_overlap_and_never_share_a_place() -> None:
    schema = Schema(tuple(Field(f"field_number_{i}", 500) for i in range(39)))
    figure = dim_against_cardinality(schema, dict.fromkeys(schema.names, 4))
    axes = figure.axes[0]
    assert len(np.unique(axes.collections[0].get_offsets()[:, 0])) == 39
    assert axes.texts and not overlap(boxes(figure, axes))


def test_dims_of_other_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="no field"):
        dim_against_cardinality(Schema((Field("a", 10),)), {"b": 2})


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        save(auc_against_bytes(REPORT), tmp_path / name)
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


TRIALS = [
    {"trial": 0, "val_auc": 0.70, "bytes": 5000, "best": False, "ended": "complete"},
    {"trial": 1, "val_auc": 0.74, "bytes": 4000, "best": True, "ended": "complete"},
    {"trial": 2, "val_auc": None, "bytes": 9000, "best": False, "ended": "over budget"},
    {"trial": 3, "val_auc": 0.60, "bytes": 1000, "best": False, "ended": "early"},
    {"trial": 4, "val_auc": 0.72, "bytes": 2000, "best": True, "ended": "complete"},
]


def test_the_best_trials_are_joined_by_size_and_bear_their_numbers() -> None:
    (axes,) = sweep_front(TRIALS, budget=6000).axes
    front, budget = axes.get_lines()
    np.testing.assert_allclose(front.get_xydata(), [[2000, 0.72], [4000, 0.74]])
    assert [text.get_text() for text in axes.texts] == ["4", "1"] and set(budget.get_xdata()) == {6000}
    (others,) = axes.collections
    np.testing.assert_allclose(others.get_offsets(), [[5000, 0.70], [1000, 0.60]])


def test_the_history_shows_the_best_of_whole_trials_so_far() -> None:
    (axes,) = sweep_history(TRIALS).axes
    (best,) = axes.get_lines()
    np.testing.assert_allclose(best.get_xydata(), [[0, 0.70], [1, 0.74], [4, 0.74]])
    assert [len(points.get_offsets()) for points in axes.collections] == [3, 1]
    assert not sweep_history(TRIALS[2:3]).axes[0].get_lines()


def test_importances_have_a_panel_for_each_measure_and_a_bar_for_each_parameter() -> None:
    first, second = importances({"AUC": {"a": 0.7, "b": 0.3}, "bytes": {"b": 1.0}}).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["b", "a"]
    assert [bar.get_width() for bar in first.patches] == [0.3, 0.7]
    assert [bar.get_width() for bar in second.patches] == [1.0, 0]


def test_differences_stand_in_panels_under_one_order_of_names_and_leave_out_what_is_missing() -> None:
    panels = {"5%": {"a": (-0.01, [-0.02, 0.0]), "b": (0.02, None)}, "10%": {"a": (0.01, [0.0, 0.02])}}
    figure = differences(panels, "all")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    dots = [[tuple(line.get_xydata()[0]) for line in a.lines if line.get_marker() == "o"] for a in (left, right)]
    assert dots == [[(-0.01, 0), (0.02, 1)], [(0.01, 0)]]
    left, _ = differences(panels, "all", ordered=True).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["b", "a"]


def test_what_lies_far_below_stands_at_the_edge_with_its_figure() -> None:
    figure = differences({"5%": {"a": (0.01, [0.0, 0.02]), "b": (-0.3, [-0.4, -0.2])}, "10%": {}}, "all", ordered=True)
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim() == pytest.approx((-0.043, 0.023))
    assert [(line.get_marker(), tuple(line.get_xydata()[0])) for line in left.lines if line.get_marker() in "o<"] == [
        ("o", (0.01, 0)),
        ("<", (-0.04, 1)),
    ]
    assert [text.get_text() for text in left.texts] == ["-0.300"]
    flat = differences({"": {"a": (0.01, [0.0, 0.02]), "b": (-0.3, [-0.4, -0.2])}}, "all").axes[0]
    assert flat.get_xlim()[0] < -0.4 and not flat.texts
