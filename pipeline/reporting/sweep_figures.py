"""Figures of a sweep's trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.style import COLOURS, STYLE, bytes_axis, new_figure


def sweep_front(trials: Sequence[Mapping[str, Any]], title: str, budget: int | None = None) -> Figure:
    """The val objective of a sweep's trials against bytes; the best trials are numbered and joined by a line.

    Args:
        trials: ``trial``, ``objective`` (None if it has none), ``bytes``, ``best`` of each.
        title: of the objective.
        budget: in bytes, drawn as a vertical line.
    """
    shown = [trial for trial in trials if trial["objective"] is not None]
    best = sorted((trial for trial in shown if trial["best"]), key=lambda trial: trial["bytes"])
    with matplotlib.rc_context(STYLE):
        figure = new_figure(6.4, 4.2)
        axes = figure.subplots()
        rest = [trial for trial in shown if not trial["best"]]
        axes.scatter([t["bytes"] for t in rest], [t["objective"] for t in rest], s=22, color=COLOURS["random"])
        axes.plot(
            [t["bytes"] for t in best],
            [t["objective"] for t in best],
            "o-",
            color=COLOURS["searched"],
            linewidth=1,
            drawstyle="steps-post",
        )
        for trial in best:
            text = str(trial["trial"])
            axes.annotate(text, (trial["bytes"], trial["objective"]), (4, 4), textcoords="offset points", fontsize=8)
        if budget is not None:
            axes.axvline(budget, color=COLOURS["full"], linewidth=1, linestyle="--", label="budget")
            axes.legend(frameon=False)
        axes.set_xscale("log")
        bytes_axis(axes)
        axes.set_ylabel(f"{title} on val")
        axes.set_title(f"{title} on val against memory (red, numbered: the best trials)", loc="left", fontsize=9)
    return figure


def sweep_history(trials: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """The val objective of a sweep's trials in their order, and the highest so far among complete trials.

    Args:
        trials: ``trial``, ``objective`` (None if it has none), ``ended`` of each.
        title: of the objective.
    """
    shown = [trial for trial in trials if trial["objective"] is not None]
    whole = [trial for trial in shown if trial["ended"] == "complete"]
    early = [trial for trial in shown if trial["ended"] != "complete"]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(6.4, 3.2)
        axes = figure.subplots()
        for some, filled, label in ((whole, COLOURS["uniform"], "complete"), (early, "none", "ended early")):
            if some:
                x, y = [t["trial"] for t in some], [t["objective"] for t in some]
                axes.scatter(x, y, s=24, facecolors=filled, edgecolors=COLOURS["uniform"], label=label)
        if whole:
            highest = np.maximum.accumulate([trial["objective"] for trial in whole])
            x = [trial["trial"] for trial in whole]
            axes.step(x, highest, where="post", color=COLOURS["searched"], label="best so far")
            axes.legend(frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{title} on val")
        axes.set_title(f"{title} on val, trial by trial", loc="left", fontsize=9)
    return figure


def importances(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """The share of each parameter in the variation between trials, one panel for each measure.

    Args:
        shares: by measure and name of the parameter, from 0 to 1.
    """
    names = sorted({name for by_name in shares.values() for name in by_name}, reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(6.4, 0.3 * len(names) + 1.2)
        panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)
        for axes, (measure, by_name) in zip(panels.flat, shares.items(), strict=True):
            axes.barh(names, [by_name.get(name, 0) for name in names], color=COLOURS["uniform"], height=0.6)
            axes.set_xlim(0, 1)
            axes.set_title(measure, loc="left", fontsize=9)
            axes.grid(axis="y", visible=False)
        figure.supxlabel("share of the variation between trials (functional ANOVA)", fontsize=9)
    return figure
