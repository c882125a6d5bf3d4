"""The figures of a report show what they are given, and name what fits without overlap."""

import copy
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from pipeline.data.schema import Field, Schema
from pipeline.reporting.figures import (
    deserved_dimensions,
    dim_against_cardinality,
    objective_against_bytes,
    trajectories,
)
from pipeline.reporting.style import save
from tests.reporting.reports import FORMS, judged

REPORT: dict[str, Any] = {
    "dataset": "planted",
    "backbone": "fm",
    "seeds": [0, 1],
    "metrics": {"auc": "AUC", "logloss": "logloss"},
    "objective": "auc",
    "allocations": {
        "searched": {"metrics": {"auc": {"mean": 0.71, "sd": 0.01, "values": [0.70, 0.72]}}, "bytes": 1000},
        "full": {"metrics": {"auc": {"mean": 0.73, "sd": 0.01, "values": [0.72, 0.74]}}, "bytes": 9000},
        "random": {
            "metrics": {"auc": {"mean": 0.70, "sd": 0.02, "values": [0.68, 0.72]}},
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


def boxes(figure: Figure, axes: Axes) -> list[Bbox]:
    figure.draw_without_rendering()
    return [Text.get_window_extent(text) for text in axes.texts]  # without the line that leads to the point


def overlap(found: list[Bbox]) -> bool:
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


def test_of_many_fields_those_with_the_most_bytes_have_a_panel_and_the_others_are_counted() -> None:
    names = [f"f{i}" for i in range(500)]
    figure = trajectories(columns(names), names[::-1])
    assert [panel.get_title(loc="left") for panel in figure.axes] == names[:-41:-1]
    (legend,) = figure.legends
    assert "of the 40 fields with the most bytes; 460 are left out" in legend.get_title().get_text()
    schema = Schema(tuple(Field(name, 500) for name in names))
    axes = dim_against_cardinality(schema, dict.fromkeys(names, 4)).axes[0]
    assert axes.collections[0].get_offsets()[:, 0].max() < 5000, "crowded fields do not stretch the axis"
    blocks = {name: [{"rows": i + 1, "components": [1], "bits": [2]}] for i, name in enumerate(names)}
    curve = {"points": [{"ratio": 0.025}], "knee": 0, "deserved": {"fields": blocks, "agreement": None}}
    report = {"curve": curve, "method": "autodim", "allocations": {"searched": {"dims": dict.fromkeys(names, 1)}}}
    drawn = deserved_dimensions(report)
    assert len(drawn.axes[0].get_yticklabels()) == 40 and "460 are left out" in drawn.get_suptitle()


def test_the_form_to_deploy_has_a_ring_and_int8_its_own_marks() -> None:
    axes = objective_against_bytes(judged([*FORMS[:3]])).axes[0]
    shapes = {(line.get_label(), line.get_marker()): line.get_xydata().tolist() for line in axes.get_lines()}
    assert shapes["deploy", "o"] == [[8000, 0.74]] and ("in int8", "s") in shapes
    assert [[700, 0.70]] in [line.get_xydata().tolist() for line in axes.get_lines() if line.get_marker() == "s"]


def test_an_empty_trajectory_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        trajectories(columns([]))


def test_points_stand_at_the_mean_and_the_bytes_with_one_ring_per_seed() -> None:
    axes = objective_against_bytes(REPORT).axes[0]
    assert axes.get_ylabel() == "AUC on test"
    points = {tuple(line.get_xydata()[0]) for line in axes.get_lines() if line.get_marker() == "o"}
    assert points == {(1000, 0.71), (9000, 0.73), (1000, 0.70)}
    dots = [tuple(dot) for collection in axes.collections for dot in collection.get_offsets() if len(dot)]
    assert (990, 0.68) in dots and (1010, 0.72) in dots and (1000, 0.70) in dots


def test_labels_of_equal_points_do_not_cover_each_other() -> None:
    report = copy.deepcopy(REPORT)
    for entry in report["allocations"].values():
        entry["metrics"]["auc"]["mean"], entry["bytes"] = 0.71, 1000
    figure = objective_against_bytes(report)
    assert not overlap(boxes(figure, figure.axes[0]))


def test_one_seed_has_no_spread() -> None:
    report = copy.deepcopy(REPORT) | {"seeds": [0]}
    for entry in report["allocations"].values():
        entry["metrics"]["auc"] = {"mean": 0.7, "sd": None, "values": [0.7]}
        entry.pop("bytes_values", None)
    assert "one seed" in objective_against_bytes(report).axes[0].get_title(loc="left")


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


def test_a_field_may_have_any_name(tmp_path: Path) -> None:
    """Matplotlib would read what stands between two dollar signs as a formula, and fail if it is none."""
    names = ["$", r"$\frac$", "a$_b$c^{", "$a_{$"]
    save(trajectories(columns(names)), tmp_path / "names.png")
    shown = unescape((tmp_path / "names.svg").read_text())
    assert all(f">{name}</text>" in shown for name in names)
    schema = Schema(tuple(Field(name, 10 ** (i + 1)) for i, name in enumerate(names)))
    figure = dim_against_cardinality(schema, dict.fromkeys(names, 2))
    figure.draw_without_rendering()
    assert {text.get_text() for text in figure.axes[0].texts} == set(names)


def test_the_map_of_deserved_dimensions_shows_every_block_and_the_searched_dimension() -> None:
    def block(rows: int, components: list[int], bits: list[int]) -> dict[str, Any]:
        return {"rows": rows, "lookups": 0.5, "components": components, "bits": bits}

    fields = {"b": [block(3, [3], [12])], "a": [block(5, [2], [6]), block(95, [0], [0])]}
    curve = {"points": [{"ratio": 0.025}], "knee": 0, "deserved": {"fields": fields, "agreement": None}}
    entries = {"searched": {"dims": {"a": 4, "b": 1}}}
    drawn = deserved_dimensions({"curve": curve, "method": "autodim", "allocations": entries})
    axes = drawn.axes[0]
    texts = {(text.get_position()): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "2 · 6", (1, 0): "–", (2, 0): "4", (0, 1): "3 · 12", (2, 1): "1"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  100", "b  3"]
