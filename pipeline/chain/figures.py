"""Figures of the rewards of policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.style import COLOURS, OTHERS, STYLE, new_figure

PALETTE = (COLOURS["searched"], COLOURS["uniform"], COLOURS["full"], *OTHERS, COLOURS["random"])


def rewards(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str, optimum: float | None) -> Figure:
    """The reward per session of each policy: a dot for each seed and a line at their mean, a panel for each test.

    Args:
        panels: rewards of the seeds, by test and policy.
        title: of the figure.
        optimum: of the first panel; None if it is not known.
    """
    names = list(next(iter(panels.values())))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(1.8 + 2.3 * len(panels), 0.3 * len(names) + 1.2)
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (panel, by_policy) in zip(all_axes, panels.items(), strict=True):
            for place, name in enumerate(names):
                values = by_policy[name]
                axes.plot(values, [place] * len(values), "o", color=COLOURS["searched"], markersize=4, alpha=0.5)
                axes.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color=COLOURS["full"], linewidth=1.6)
            if optimum is not None:
                axes.axvline(optimum, color="#555555", linewidth=0.8, linestyle="--")
                axes.annotate("optimum", (optimum, -0.45), (-3, 0), textcoords="offset points", fontsize=7, ha="right")
                optimum = None
            axes.set_xlim(left=0)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.6)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_title(panel, loc="left", fontsize=9)
        figure.supxlabel("reward per session", fontsize=9)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def curves(points: Mapping[str, Mapping[int, Sequence[float]]], title: str, optimum: float | None) -> Figure:
    """The reward per session against known transitions: a curve of the mean over seeds for each policy, in a band from
    minimum to maximum.

    Args:
        points: rewards of the seeds, by policy and number of transitions.
        title: of the figure.
        optimum: a line of this height; None for no line.
    """
    with matplotlib.rc_context(STYLE):
        figure = new_figure(6.4, 4.0)
        axes = figure.subplots()
        for place, (name, by_number) in enumerate(points.items()):
            colour = PALETTE[place % len(PALETTE)]
            numbers = sorted(by_number)
            axes.plot(numbers, [np.mean(by_number[n]) for n in numbers], "o-", color=colour, label=name, markersize=4)
            lows, highs = ([pick(by_number[n]) for n in numbers] for pick in (min, max))
            axes.fill_between(numbers, lows, highs, color=colour, alpha=0.12, linewidth=0)
        if optimum is not None:
            axes.axhline(optimum, color="#555555", linewidth=0.8, linestyle="--", label="optimum")
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("known transitions")
        axes.set_ylabel("reward per session")
        axes.set_title(title, loc="left", fontsize=9)
        axes.legend(frameon=False, fontsize=7)
    return figure
