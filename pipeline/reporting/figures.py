"""Pictures of a search and of its report. Nothing here computes a result."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from pipeline.data.schema import Schema

POINTS = 300  # of a trajectory that are drawn; more cannot be told apart in a small panel
LONGEST_NAME = 18
COLOURS = {"searched": "#c0392b", "full": "#2c3e50", "uniform": "#2e86c1", "random": "#7f8c8d"}
OTHERS = ("#8e44ad", "#16a085", "#d68910", "#6e2c00")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "svg.hashsalt": "pipeline",
}


def save(figure: Figure, path: str | Path) -> None:
    """Write ``path`` as .png and as .svg, whatever its suffix; the same figure gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, dpi=160, metadata=metadata)
            final = Path(path).with_suffix(f".{kind}")
            final.parent.mkdir(parents=True, exist_ok=True)
            draft = final.with_name(f".{final.name}.{os.getpid()}")
            try:
                draft.write_bytes(drawn.getvalue())
                draft.replace(final)
            finally:
                draft.unlink(missing_ok=True)


def trajectories(columns: Mapping[str, Any]) -> Figure:
    """Probability of every candidate dimension during the search, one panel per field.

    Args:
        columns: ``step``, ``feature``, ``candidate_dim``, ``probability`` of equal length, one row for every
            step, field and candidate; the data frame of ``trajectory.parquet`` will do.

    Each panel also names the dimension that is most probable at the end, before any budget.
    """
    step, feature, dim, probability = (
        np.asarray(columns[key]) for key in ("step", "feature", "candidate_dim", "probability")
    )
    if not len(step):
        raise ValueError("the trajectory is empty; search with at least one recorded step")
    names = list(dict.fromkeys(feature.tolist()))
    dims = sorted(set(dim.tolist()))
    colours = _by_dim(dims)
    across = min(len(names), max(3, math.ceil(math.sqrt(1.6 * len(names)))))
    down = math.ceil(len(names) / across)
    with matplotlib.rc_context(STYLE):
        figure = _figure(max(4.5, 1.65 * across), 1.35 * down + 1.15)
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for spare in panels.flat[len(names) :]:
            spare.remove()
        for i, name in enumerate(names):
            axes: Axes = panels.flat[i]
            last = {}
            for d in dims:
                rows = np.flatnonzero((feature == name) & (dim == d))
                if not len(rows):
                    continue
                rows = rows[np.argsort(step[rows], kind="stable")]
                last[d] = probability[rows[-1]]
                shown = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), POINTS)).astype(int))]
                axes.plot(step[shown], probability[shown], color=colours[d], linewidth=1.3)
            winner = max(last, key=lambda d: (last[d], -d))
            axes.set_title(_clipped(name), loc="left", fontsize=8, pad=3)
            axes.set_title(str(winner), loc="right", fontsize=8, pad=3, color=colours[winner], fontweight="bold")
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
            axes.xaxis.set_major_locator(MaxNLocator(2, integer=True, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
            axes.tick_params(labelsize=7, length=2)
            if i + across >= len(names):  # the lowest panel of its column
                axes.tick_params(labelbottom=True)
        handles = [Line2D([], [], color=colours[d], linewidth=2.5, label=str(d)) for d in dims]
        figure.legend(
            handles=handles,
            loc="outside upper left",
            title="How the search chose: probability of every candidate dimension\n"
            "(bold at the panel: the most probable at the end)",
            ncols=min(len(dims), across * 2),
            frameon=False,
            alignment="left",
        )
        figure.supxlabel("weight step", fontsize=9)
        figure.supylabel("probability", fontsize=9)
    return figure


def auc_against_bytes(report: Mapping[str, Any]) -> Figure:
    """Test AUC of every allocation against its embedding's bytes: mean, s.d. over seeds, and every seed.

    Args:
        report: the contents of ``report.json``.
    """
    with matplotlib.rc_context(STYLE):
        figure = _figure(6.4, 4.2)
        axes = figure.subplots()
        spare = iter(OTHERS * len(report["allocations"]))
        points = []
        for name, entry in report["allocations"].items():
            colour = COLOURS.get(name) or next(spare)
            values = entry["auc"]["values"]
            sizes = entry.get("bytes_values", [entry["bytes"]] * len(values))
            axes.scatter(sizes, values, s=30, facecolors="none", edgecolors=colour, linewidths=0.9, zorder=4)
            axes.errorbar(
                entry["bytes"],
                entry["auc"]["mean"],
                yerr=entry["auc"]["sd"],
                fmt="o",
                color=colour,
                markersize=6,
                capsize=3,
                linewidth=1.2,
            )
            points.append((f"{name}  {entry['auc']['mean']:.4f}", entry["bytes"], entry["auc"]["mean"], colour))
        axes.set_xscale("log")
        _bytes_axis(axes)
        axes.set_ylabel("AUC on test")
        several = f"rings: {len(report['seeds'])} seeds; dots and bars: their mean and s.d."
        seeds = several if len(report["seeds"]) > 1 else "one seed"
        axes.set_title(
            f"AUC on test against memory: {report['dataset']}, {report['backbone']}\n({seeds})", loc="left", fontsize=9
        )
        low, high = axes.get_xlim()
        axes.set_xlim(low / (high / low) ** 0.05, high * (high / low) ** 0.35)  # room for the labels
        _label_apart(figure, axes, points)
    return figure


def dim_against_cardinality(schema: Schema, dims: Mapping[str, int], ranks: Mapping[str, int] | None = None) -> Figure:
    """Chosen dimension of every field against its number of feature ids.

    Dimensions are spaced evenly, fields of nearly the same size are moved apart, and a field is named where its
    name finds room.

    Args:
        schema: F fields.
        dims: dimension of each field, by name.
        ranks: rank that the field was planted with, where known; drawn hollow.
    """
    ranks = ranks or {}
    shown = sorted((field for field in schema.fields if field.name in dims), key=lambda field: field.cardinality)
    if not shown:
        raise ValueError(f"dims are given for no field of the schema; it has {list(schema.names)}")
    names = [field.name for field in shown]
    levels = sorted({dims[name] for name in names} | {ranks[name] for name in names if name in ranks})
    x = _apart(np.array([field.cardinality for field in shown], dtype=float))
    y = [levels.index(dims[name]) for name in names]
    planted = [
        (at, levels.index(ranks[name]), chosen) for name, at, chosen in zip(names, x, y, strict=True) if name in ranks
    ]
    with matplotlib.rc_context(STYLE):
        figure = _figure(7.2, 4.6)
        axes = figure.subplots()
        axes.scatter(x, y, s=26, color=COLOURS["searched"], linewidths=0, zorder=3)
        for at, rank, chosen in planted:
            axes.plot([at, at], [rank, chosen], color="#c4c4c4", linewidth=1, zorder=1)
            axes.plot(at, rank, "o", markersize=8, fillstyle="none", color=COLOURS["full"], markeredgewidth=1.1)
        axes.set_xscale("log")
        axes.margins(x=0.08)
        decades = np.log10(x[-1] / x[0])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.set_yticks(range(len(levels)), ["0 (dropped)" if level == 0 else str(level) for level in levels])
        axes.set_ylim(-0.6, len(levels) - 0.4)
        axes.set_xlabel("feature ids of the field (fields of nearly the same size stand side by side)")
        axes.set_ylabel("dimension")
        handles = [Line2D([], [], marker="o", linestyle="", color=COLOURS["searched"], label="searched dimension")]
        if planted:
            handles.append(
                Line2D([], [], marker="o", linestyle="", color=COLOURS["full"], fillstyle="none", label="planted rank")
            )
        figure.legend(
            handles=handles,
            loc="outside upper left",
            title="The dimension of every field against its number of feature ids",
            ncols=2,
            frameon=False,
            alignment="left",
        )
        rings = [(float(at), float(rank)) for at, rank, _ in planted]
        _name_where_free(figure, axes, list(zip(names, x.tolist(), y, strict=True)), rings)
    return figure


def sweep_front(trials: Sequence[Mapping[str, Any]], budget: int | None = None) -> Figure:
    """AUC on val of a sweep's trials against bytes; the best are numbered, and joined where they are several.

    Args:
        trials: ``trial``, ``val_auc`` (None where there is none), ``bytes``, ``best`` of each.
        budget: bytes, drawn as a line.
    """
    shown = [trial for trial in trials if trial["val_auc"] is not None]
    best = sorted((trial for trial in shown if trial["best"]), key=lambda trial: trial["bytes"])
    with matplotlib.rc_context(STYLE):
        figure = _figure(6.4, 4.2)
        axes = figure.subplots()
        rest = [trial for trial in shown if not trial["best"]]
        axes.scatter([t["bytes"] for t in rest], [t["val_auc"] for t in rest], s=22, color=COLOURS["random"])
        axes.plot(
            [t["bytes"] for t in best],
            [t["val_auc"] for t in best],
            "o-",
            color=COLOURS["searched"],
            linewidth=1,
            drawstyle="steps-post",
        )
        for trial in best:
            text = str(trial["trial"])
            axes.annotate(text, (trial["bytes"], trial["val_auc"]), (4, 4), textcoords="offset points", fontsize=8)
        if budget is not None:
            axes.axvline(budget, color=COLOURS["full"], linewidth=1, linestyle="--", label="budget")
            axes.legend(frameon=False)
        axes.set_xscale("log")
        _bytes_axis(axes)
        axes.set_ylabel("AUC on val")
        axes.set_title("AUC on val against memory (red, with their numbers: the best trials)", loc="left", fontsize=9)
    return figure


def sweep_history(trials: Sequence[Mapping[str, Any]]) -> Figure:
    """AUC on val of a sweep's trials in their order, and the highest so far of those that came to their end.

    Args:
        trials: ``trial``, ``val_auc`` (None where there is none), ``ended`` of each.
    """
    shown = [trial for trial in trials if trial["val_auc"] is not None]
    whole = [trial for trial in shown if trial["ended"] == "complete"]
    early = [trial for trial in shown if trial["ended"] != "complete"]
    with matplotlib.rc_context(STYLE):
        figure = _figure(6.4, 3.2)
        axes = figure.subplots()
        for some, filled, label in ((whole, COLOURS["uniform"], "complete"), (early, "none", "ended early")):
            if some:
                x, y = [t["trial"] for t in some], [t["val_auc"] for t in some]
                axes.scatter(x, y, s=24, facecolors=filled, edgecolors=COLOURS["uniform"], label=label)
        if whole:
            highest = np.maximum.accumulate([trial["val_auc"] for trial in whole])
            x = [trial["trial"] for trial in whole]
            axes.step(x, highest, where="post", color=COLOURS["searched"], label="best so far")
            axes.legend(frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("trial")
        axes.set_ylabel("AUC on val")
        axes.set_title("AUC on val, trial by trial", loc="left", fontsize=9)
    return figure


def importances(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """How much of what is measured each parameter decides.

    Args:
        shares: of each parameter by name, for every measure; one panel each.
    """
    names = sorted({name for of in shares.values() for name in of}, reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = _figure(6.4, 0.3 * len(names) + 1.2)
        panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)
        for axes, (measure, of) in zip(panels.flat, shares.items(), strict=True):
            axes.barh(names, [of.get(name, 0) for name in names], color=COLOURS["uniform"], height=0.6)
            axes.set_xlim(0, 1)
            axes.set_title(measure, loc="left", fontsize=9)
            axes.grid(axis="y", visible=False)
        figure.supxlabel("share of the variation between trials (functional ANOVA)", fontsize=9)
    return figure


def differences(
    panels: Mapping[str, Mapping[str, tuple[float, Sequence[float] | None]]], title: str, ordered: bool = False
) -> Figure:
    """A difference for each setting, with its interval where there is one, in panels side by side.

    Args:
        panels: by panel and name, mean and interval; a name that a panel lacks is empty there.
        ordered: names by their mean difference, the largest first, on one scale for all panels, which ends where what
            lies far below would hide the others; that stands at the edge with its figure. Otherwise as they come.
    """
    names = list(dict.fromkeys(name for of_panel in panels.values() for name in of_panel))
    if ordered:
        names.sort(key=lambda name: -np.mean([of_panel[name][0] for of_panel in panels.values() if name in of_panel]))
    with matplotlib.rc_context(STYLE):
        figure = _figure(6.4 if len(panels) == 1 else 1.6 + 2.4 * len(panels), 0.28 * len(names) + 1.1)
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        shown = [interval or [mean] for of_panel in panels.values() for mean, interval in of_panel.values()]
        highest, lowest = max((max(of) for of in shown), default=0.0), min((min(of) for of in shown), default=0.0)
        edge = max(lowest, -2 * highest) if ordered and highest > 0 else None
        for axes, (panel, of_panel) in zip(all_axes, panels.items(), strict=True):
            if edge is not None:
                room = 0.05 * (highest - edge)
                axes.set_xlim(edge - room, highest + room)
            for place, name in enumerate(names):
                mean, interval = of_panel.get(name, (None, None))
                if edge is not None and mean is not None and mean < edge:
                    axes.plot([edge], [place], "<", color=COLOURS["searched"], markersize=4)
                    axes.annotate(f"{mean:.3f}", (edge, place), (5, -3), textcoords="offset points", fontsize=7)
                    continue
                if interval is not None:
                    axes.plot(interval, [place, place], color=COLOURS["searched"], linewidth=1.4)
                if mean is not None:
                    axes.plot([mean], [place], "o", color=COLOURS["searched"], markersize=4)
            axes.axvline(0, color="#555555", linewidth=0.8)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.xaxis.set_major_locator(MaxNLocator(6 if len(panels) == 1 else 4))
            if panel:
                axes.set_title(panel, loc="left", fontsize=9)
        figure.supxlabel("difference in AUC, 95 % interval over seeds", fontsize=9)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def curves(points: Mapping[str, Sequence[tuple[float, Sequence[float]]]], title: str) -> Figure:
    """AUC against bytes, a curve for each allocation: mean over seeds, and the range between them as a band.

    Args:
        points: by allocation, bytes and the AUC of every seed.
    """
    with matplotlib.rc_context(STYLE):
        figure = _figure(6.4, 4.2)
        axes = figure.subplots()
        for place, (name, of_name) in enumerate(points.items()):
            colour = COLOURS.get(name, OTHERS[place % len(OTHERS)])
            ordered = sorted(of_name)
            size = [size for size, _ in ordered]
            axes.plot(size, [np.mean(values) for _, values in ordered], "o-", color=colour, label=name, markersize=4)
            lows, highs = ([pick(values) for _, values in ordered] for pick in (min, max))
            axes.fill_between(size, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        _bytes_axis(axes)
        axes.set_ylabel("AUC on test")
        axes.set_title(title, loc="left", fontsize=9)
        axes.legend(frameon=False)
    return figure


def _apart(x: np.ndarray) -> np.ndarray:
    """Ascending values, moved to the right where they stand closer than a marker on a logarithmic axis."""
    at = np.log(x)
    least = 0.022 * max(at[-1] - at[0], 1.0)
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + least)
    return np.exp(at)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _by_dim(dims: list[int]) -> dict[int, Any]:
    """Light to dark with the dimension, over more hues than one: lines are thin."""
    shades = matplotlib.colormaps["plasma_r"](np.linspace(0.2, 0.95, len(dims)))
    return dict(zip(dims, shades, strict=True))


def _clipped(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _short(value: float, _: Any = None, space: str = "") -> str:
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{space}{sign}"
    return f"{value:.3g}{space}"


def _bytes_axis(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _short(v, space=" ") + "B"))
    low, high = axes.get_xlim()
    if high / low < 30:  # powers of ten alone would leave the axis bare
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("bytes of the embedding")


def _label_apart(figure: Figure, axes: Axes, points: list[tuple[str, float, float, str]]) -> None:
    """A label to the right of every point (text, x, y, colour), moved up where it would cover the one below."""
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


def _name_where_free(
    figure: Figure, axes: Axes, points: list[tuple[str, float, float]], rings: list[tuple[float, float]]
) -> None:
    """Names (text, x, y) beside their points, clear of the rings; one that finds no room is left out."""
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    taken = []
    for x, y, reach in [*((x, y, 3) for _, x, y in points), *((x, y, 5) for x, y in rings)]:
        across, up = axes.transData.transform((x, y))
        half = reach * figure.dpi / 72
        taken.append(Bbox.from_extents(across - half, up - half, across + half, up + half))
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
    for name, x, y in points:
        text = axes.annotate(_clipped(name), (x, y), (0, 0), textcoords="offset points", fontsize=7, va="center")
        for right, above, side in sides:
            text.set_position((right, above))
            text.set_horizontalalignment(side)
            box = text.get_window_extent()
            free = not any(box.overlaps(other) for other in taken)
            if free and inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1:
                taken.append(box)
                break
        else:
            text.remove()
