"""Figures of a search and of its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pipeline.data.schema import Schema
from pipeline.reporting.deserved import rounded
from pipeline.reporting.forms import INT4, INT8
from pipeline.reporting.labels import apart, label_apart, name_where_free
from pipeline.reporting.style import COLOURS, OTHERS, STYLE, bytes_axis, clipped, new_figure, short

POINTS = 300  # drawn of a trajectory; a small panel cannot show more
PANELS = 40  # fields that a figure with a panel or a row for each field shows


def trajectories(columns: Mapping[str, Any], fields: Sequence[str] = ()) -> Figure:
    """Probability of every candidate dimension during the search, one panel per field, for `PANELS` fields at most.

    Each panel also names the dimension that is most probable at the end, before any budget.

    Args:
        columns: ``step``, ``feature``, ``candidate_dim``, ``probability`` of equal length, one row for every
            step, field and candidate, as in the data frame of ``trajectory.parquet``.
        fields: their order, the most important first; empty for that of the columns.

    Raises:
        ValueError: if there are no rows.
    """
    frame = pd.DataFrame({name: columns[name] for name in ("step", "feature", "candidate_dim", "probability")})
    if frame.empty:
        raise ValueError("the trajectory is empty; search with at least one recorded step")
    known = frame["feature"].unique().tolist()
    names = ([name for name in fields if name in set(known)] or known)[:PANELS]
    shown = frame[frame["feature"].isin(names)].sort_values("step", kind="stable")
    lines = dict(iter(shown.groupby(["feature", "candidate_dim"])))
    dims = sorted({dim for _, dim in lines})
    colours = _by_dim(dims)
    across = min(len(names), max(3, math.ceil(math.sqrt(1.6 * len(names)))))
    down = math.ceil(len(names) / across)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(max(4.5, 1.65 * across), 1.35 * down + 1.15)
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for spare in panels.flat[len(names) :]:
            spare.remove()
        for i, name in enumerate(names):
            axes: Axes = panels.flat[i]
            _draw_trajectory(axes, name, {dim: lines[name, dim] for dim in dims if (name, dim) in lines}, colours)
            if i + across >= len(names):  # the lowest panel of its column
                axes.tick_params(labelbottom=True)
        handles = [Line2D([], [], color=colours[d], linewidth=2.5, label=str(d)) for d in dims]
        title = "Probability of every candidate dimension during the search"
        if len(names) < len(known):
            title += f"\nof the {len(names)} fields with the most bytes; {len(known) - len(names)} are left out"
        figure.legend(
            handles=handles,
            loc="outside upper left",
            title=f"{title}\n(bold: most probable at the end)",
            ncols=min(len(dims), across * 2),
            frameon=False,
            alignment="left",
        )
        figure.supxlabel("weight step", fontsize=9)
        figure.supylabel("probability", fontsize=9)
    return figure


def _draw_trajectory(axes: Axes, name: str, lines: Mapping[int, pd.DataFrame], colours: Mapping[int, Any]) -> None:
    """The panel of a field; ``lines`` has the steps and probabilities of each dimension."""
    for dim, line in lines.items():
        shown = line.iloc[np.unique(np.linspace(0, len(line) - 1, min(len(line), POINTS)).astype(int))]
        axes.plot(shown["step"], shown["probability"], color=colours[dim], linewidth=1.3)
    winner = max(lines, key=lambda dim: (lines[dim]["probability"].iloc[-1], -dim))
    axes.set_title(clipped(name), loc="left", fontsize=8, pad=3)
    axes.set_title(str(winner), loc="right", fontsize=8, pad=3, color=colours[winner], fontweight="bold")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.xaxis.set_major_locator(MaxNLocator(2, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.tick_params(labelsize=7, length=2)


def objective_against_bytes(report: Mapping[str, Any]) -> Figure:
    """The test objective of every allocation against the bytes of its embedding: each seed, mean and s.d.

    Args:
        report: the contents of ``report.json``.
    """
    objective = report["objective"]
    title = report["metrics"][objective]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(6.4, 4.2)
        axes = figure.subplots()
        spare = iter(OTHERS * len(report["allocations"]))
        points = []
        for name, entry in report["allocations"].items():
            colour = COLOURS.get(name) or next(spare)
            metric = entry["metrics"][objective]
            sizes = entry.get("bytes_values", [entry["bytes"]] * len(metric["values"]))
            axes.scatter(sizes, metric["values"], s=30, facecolors="none", edgecolors=colour, linewidths=0.9, zorder=4)
            middle = entry["bytes"], metric["mean"], metric["sd"]
            axes.errorbar(*middle, fmt="o", color=colour, markersize=6, capsize=3, linewidth=1.2)
            points.append((f"{name}  {metric['mean']:.4f}", entry["bytes"], metric["mean"], colour))
        if "curve" in report:
            _draw_curve(axes, report)
        _draw_forms(axes, report)
        axes.set_xscale("log")
        bytes_axis(axes)
        axes.set_ylabel(f"{title} on test")
        several = f"rings: {len(report['seeds'])} seeds; dots and bars: their mean and s.d."
        seeds = several if len(report["seeds"]) > 1 else "one seed"
        about = f"{title} on test against memory: {report['dataset']}, {report['backbone']}\n({seeds})"
        axes.set_title(about, loc="left", fontsize=9)
        low, high = axes.get_xlim()
        axes.set_xlim(low / (high / low) ** 0.05, high * (high / low) ** 0.35)  # room for the labels
        label_apart(figure, axes, points)
    return figure


def _draw_curve(axes: Axes, report: Mapping[str, Any]) -> None:
    """The full models coded at many sizes, and the knee."""
    curve = report["curve"]
    points = curve["points"]
    sizes, values = [p["bytes"] for p in points], [p["test"]["mean"] for p in points]
    axes.plot(sizes, values, color=OTHERS[1], linewidth=1.4, label="full, coded", zorder=3)
    if curve["knee"] is not None:
        knee = points[curve["knee"]]
        label = f"full, coded at {knee['ratio']:.1%}  {knee['test']['mean']:.4f}"
        axes.plot([knee["bytes"]], [knee["test"]["mean"]], "D", color=OTHERS[1], markersize=6, label=label, zorder=5)


def _draw_forms(axes: Axes, report: Mapping[str, Any]) -> None:
    """The allocations in int8 and int4, and a ring around the form to deploy."""
    forms, marks = report.get("forms", ()), {INT8: "s", INT4: "v"}
    for form in forms:
        at = [form["bytes"]], [form["test"]["mean"]]
        if form["kind"] in marks:
            colour = COLOURS.get(form["allocation"], OTHERS[0])
            axes.plot(*at, marks[form["kind"]], color=colour, markersize=5, fillstyle="none", zorder=4)
        if form["name"] == report["deploy"]:
            axes.plot(*at, "o", color="#d68910", markersize=15, fillstyle="none", markeredgewidth=1.6, label="deploy")
    for kind, mark in marks.items():
        if any(form["kind"] == kind for form in forms):
            axes.plot([], [], mark, color=OTHERS[0], markersize=5, fillstyle="none", label=f"in {kind}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", frameon=False, fontsize=8)


def dim_against_cardinality(schema: Schema, dims: Mapping[str, int], ranks: Mapping[str, int] | None = None) -> Figure:
    """Chosen dimension of every field against its number of feature ids.

    Dimensions are spaced evenly. Fields of nearly the same size are moved apart. Points are labelled with the names of
    fields if there is room.

    Args:
        schema: F fields.
        dims: dimension of each field, by name.
        ranks: planted rank of each field, by name, where known; drawn as rings.

    Raises:
        ValueError: if no field of the schema has a dimension.
    """
    ranks = ranks or {}
    shown = sorted((field for field in schema.fields if field.name in dims), key=lambda field: field.cardinality)
    if not shown:
        raise ValueError(f"no field of the schema has a dimension; the schema has {list(schema.names)}")
    names = [field.name for field in shown]
    levels = sorted({dims[name] for name in names} | {ranks[name] for name in names if name in ranks})
    x = apart(np.array([field.cardinality for field in shown], dtype=float))
    y = [levels.index(dims[name]) for name in names]
    planted = [
        (at, levels.index(ranks[name]), chosen) for name, at, chosen in zip(names, x, y, strict=True) if name in ranks
    ]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.2, 4.6)
        axes = figure.subplots()
        axes.scatter(x, y, s=26, color=COLOURS["searched"], linewidths=0, zorder=3)
        for at, rank, chosen in planted:
            axes.plot([at, at], [rank, chosen], color="#c4c4c4", linewidth=1, zorder=1)
            axes.plot(at, rank, "o", markersize=8, fillstyle="none", color=COLOURS["full"], markeredgewidth=1.1)
        axes.set_xscale("log")
        axes.margins(x=0.08)
        decades = np.log10(x[-1] / x[0])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.xaxis.set_minor_formatter(NullFormatter())
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
        name_where_free(figure, axes, list(zip(names, x.tolist(), y, strict=True)), rings)
    return figure


def _by_dim(dims: list[int]) -> dict[int, Any]:
    """A colour for each dimension, the darker the larger; of several hues, because thin lines need the contrast."""
    shades = matplotlib.colormaps["plasma_r"](np.linspace(0.2, 0.95, len(dims)))
    return dict(zip(dims, shades, strict=True))


def deserved_dimensions(report: Mapping[str, Any]) -> Figure:
    """The components and bits that each field keeps at the knee of the curve, by frequency, as a map.

    Args:
        report: the contents of ``report.json``, with ``deserved`` in its curve.
    """
    curve = report["curve"]
    fields, method = curve["deserved"]["fields"], report["method"]
    dims = report["allocations"]["searched"]["dims"]
    values = {name: sum(block["rows"] for block in blocks) for name, blocks in fields.items()}
    names = sorted(fields, key=lambda name: -values[name])[:PANELS]
    most = max(map(len, fields.values()))
    bits = np.full((len(names), most), np.nan)
    for row, name in enumerate(names):
        bits[row, : len(fields[name])] = [np.mean(block["bits"]) for block in fields[name]]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(2.6 + 1.15 * (most + 1), 1.5 + 0.3 * len(names))
        axes = figure.subplots()
        axes.grid(False)
        largest = max(float(np.nanmax(bits)), 1.0)
        edges = np.arange(most + 1) - 0.5, np.arange(len(names) + 1) - 0.5
        axes.pcolormesh(*edges, np.ma.masked_invalid(bits), cmap="YlGnBu", vmin=0, vmax=largest)
        for row, name in enumerate(names):
            for column, block in enumerate(fields[name]):
                dark = bits[row, column] > 0.6 * largest
                text = f"{rounded(block['components'])} · {rounded(block['bits'])}" if any(block["bits"]) else "–"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "#222222")
            if not isinstance(dims, list):
                axes.text(most, row, str(dims.get(name, 0)), ha="center", va="center", fontsize=8)
        axes.set_xlim(-0.5, most + 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        heads = ["most\nfrequent", *["less\nfrequent"] * (most - 2), "least\nfrequent"][:most]
        axes.set_xticks(range(most + 1), [*heads, f"{method}\n(dimension)"], fontsize=8)
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(names)), [f"{clipped(name)}  {values[name]:,}" for name in names], fontsize=8)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        knee = curve["points"][curve["knee"]]
        agreement = curve["deserved"]["agreement"]
        agree = "" if agreement is None else f"; the seeds agree: {agreement:.2f}"
        axes.set_xlabel(
            f"components with bits · bits of a row, full models coded at {knee['ratio']:.1%}{agree}\n"
            "columns: values by falling frequency, mostly half of the lookups, 30 %, 15 %, and the rest;\n"
            "a field with one cell is coded as a whole",
            fontsize=8,
        )
        title = "How many dimensions each field deserves, by field and frequency"
        if len(names) < len(fields):
            title += f", of the {len(names)} fields with the most values; {len(fields) - len(names)} are left out"
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure
