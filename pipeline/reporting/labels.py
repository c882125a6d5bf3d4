"""Labels in figures that do not overlap."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.reporting.style import clipped

NAMES = 60  # points that may have a name


def apart(x: np.ndarray) -> np.ndarray:
    """Ascending values, moved to the right where their markers would overlap on a logarithmic axis."""
    at = np.log(x)
    least = min(0.022, 1 / len(at)) * max(at[-1] - at[0], 1.0)  # many markers overlap rather than double the axis
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + least)
    return np.exp(at)


def label_apart(figure: Figure, axes: Axes, points: list[tuple[str, float, float, str]]) -> None:
    """Label every point (text, x, y, colour) on its right; a label moves up if it would cover the one below."""
    figure.draw_without_rendering()
    gap = 13 * figure.dpi / 72
    height = -math.inf
    for text, x, y, colour in sorted(points, key=lambda point: point[2]):
        right, level = axes.transData.transform((x, y))
        height = max(level, height + gap)
        beside = axes.transData.inverted().transform((right + 0.22 * figure.dpi, height))
        axes.annotate(
            text,
            (x, y),
            xytext=(float(beside[0]), float(beside[1])),
            textcoords="data",
            color=colour,
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.8},
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5, "shrinkB": 4},
        )


def name_where_free(
    figure: Figure, axes: Axes, points: list[tuple[str, float, float]], rings: list[tuple[float, float]]
) -> None:
    """Write the names of points (text, x, y) beside them, clear of the rings (x, y); omit names that find no room.

    At most `NAMES` points have a name, the last ones, so that the time is linear in the number of points.
    """
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    marks = axes.transData.transform([(x, y) for _, x, y in points] + rings)
    reach = np.repeat([3.0, 5.0], [len(points), len(rings)])[:, None] * figure.dpi / 72
    taken = np.concatenate([marks - reach, marks + reach], axis=1)  # (boxes, 4): x0, y0, x1, y1
    sides: list[tuple[int, int, Literal["left", "center", "right"]]] = [
        (6, 0, "left"),
        (0, 8, "center"),
        (0, -9, "center"),
        (-6, 0, "right"),
        (5, 8, "left"),
        (5, -9, "left"),
        (-5, 8, "right"),
        (-5, -9, "right"),
        (0, 16, "center"),
        (0, -17, "center"),
    ]
    for name, x, y in points[-NAMES:]:
        text = axes.annotate(clipped(name), (x, y), (0, 0), textcoords="offset points", fontsize=7, va="center")
        for right, above, side in sides:
            text.set_position((right, above))
            text.set_horizontalalignment(side)
            box = text.get_window_extent()
            free = not ((taken[:, :2] < box.max) & (taken[:, 2:] > box.min)).all(axis=1).any()
            if free and inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1:
                taken = np.concatenate([taken, [box.extents]])
                break
        else:
            text.remove()
