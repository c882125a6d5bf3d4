"""Figures of a study's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.style import COLOURS, OTHERS, STYLE, bytes_axis, new_figure

Interval = tuple[float, Sequence[float] | None]  # a difference, and its interval if there is one


def differences(panels: Mapping[str, Mapping[str, Interval]], title: str, axis: str, ordered: bool = False) -> Figure:
    """Differences with their intervals, in panels side by side.

    Args:
        panels: differences by panel and name; a name that a panel lacks has an empty row there.
        title: of the figure.
        axis: title of the horizontal axis.
        ordered: sort the names by their mean difference, the largest first, and give all panels the same scale.
            Differences far below the others are beyond the scale and are written at its edge.
    """
    names = list(dict.fromkeys(name for by_name in panels.values() for name in by_name))
    if ordered:
        names.sort(key=lambda name: -np.mean([by_name[name][0] for by_name in panels.values() if name in by_name]))
    edge, highest = _edge(panels) if ordered else (None, 0.0)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(6.4 if len(panels) == 1 else 1.6 + 2.4 * len(panels), 0.28 * len(names) + 1.1)
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (panel, by_name) in zip(all_axes, panels.items(), strict=True):
            if edge is not None:
                room = 0.05 * (highest - edge)
                axes.set_xlim(edge - room, highest + room)
            for place, name in enumerate(names):
                if name in by_name:
                    _draw(axes, place, *by_name[name], edge)
            axes.axvline(0, color="#555555", linewidth=0.8)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.xaxis.set_major_locator(MaxNLocator(6 if len(panels) == 1 else 4))
            if panel:
                axes.set_title(panel, loc="left", fontsize=9)
        figure.supxlabel(axis, fontsize=9)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def _edge(panels: Mapping[str, Mapping[str, Interval]]) -> tuple[float | None, float]:
    """The left end of the scale, None if nothing is beyond it, and the right end."""
    shown = [interval or [mean] for by_name in panels.values() for mean, interval in by_name.values()]
    highest = max((max(ends) for ends in shown), default=0.0)
    lowest = min((min(ends) for ends in shown), default=0.0)
    return (max(lowest, -2 * highest) if highest > 0 else None), highest


def _draw(axes: Axes, place: int, mean: float, interval: Sequence[float] | None, edge: float | None) -> None:
    if edge is not None and mean < edge:
        axes.plot([edge], [place], "<", color=COLOURS["searched"], markersize=4)
        axes.annotate(f"{mean:.3f}", (edge, place), (5, -3), textcoords="offset points", fontsize=7)
        return
    if interval is not None:
        axes.plot(interval, [place, place], color=COLOURS["searched"], linewidth=1.4)
    axes.plot([mean], [place], "o", color=COLOURS["searched"], markersize=4)


def curves(points: Mapping[str, Sequence[tuple[float, Sequence[float]]]], title: str, axis: str) -> Figure:
    """A metric against bytes: a curve of the mean over seeds for each allocation, in a band from minimum to maximum.

    Args:
        points: (bytes, metric of each seed), by allocation.
        title: of the figure.
        axis: title of the metric.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(6.4, 4.2)
        axes = figure.subplots()
        many = len(points) > len(OTHERS)
        for place, (name, allocation_points) in enumerate(points.items()):
            spare = matplotlib.colormaps["tab20"](place % 20) if many else OTHERS[place % len(OTHERS)]
            colour = COLOURS.get(name, spare)
            ordered = sorted(allocation_points)
            size = [size for size, _ in ordered]
            axes.plot(size, [np.mean(values) for _, values in ordered], "o-", color=colour, label=name, markersize=4)
            lows, highs = ([pick(values) for _, values in ordered] for pick in (min, max))
            axes.fill_between(size, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        bytes_axis(axes)
        axes.set_ylabel(axis)
        axes.set_title(title, loc="left", fontsize=9)
        axes.legend(frameon=False, fontsize=7 if many else None)
    return figure
