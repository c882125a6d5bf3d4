"""The common style of all figures, the axis of bytes, and how a figure is saved."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pipeline.workflow.outputs import whole

LONGEST_NAME = 18
COLOURS = {"searched": "#c0392b", "full": "#2c3e50", "uniform": "#2e86c1", "random": "#7f8c8d", "coded": "#8e44ad"}
OTHERS = ("#8e44ad", "#16a085", "#d68910", "#6e2c00")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "text.parse_math": False,  # names of fields are shown as they are, dollar signs included
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
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "pipeline",
}


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure next to ``path`` as .png, and as .svg without a background; equal figures give equal bytes.

    Args:
        figure: to write.
        path: its suffix is replaced.
    """
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is found; to find it again for every kind takes most of the time
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, dpi=160, metadata=metadata, transparent=kind == "svg")
            with whole(Path(path).with_suffix(f".{kind}")) as draft:
                draft.write_bytes(drawn.getvalue())


def attempt(draw: Callable[[], Figure], path: str | Path) -> bool:
    """Draw a figure and `save` it; whether that succeeded. A figure that fails costs a warning, not the report.

    Args:
        draw: makes the figure.
        path: its suffix is replaced.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing")  # of the PNG; a browser has more fonts
            save(draw(), path)
    except Exception as error:
        print(f"warning: the figure {Path(path).stem} is left out: {type(error).__name__}: {error}")
        return False
    return True


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, with its width and height in inches, that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def clipped(name: str) -> str:
    """A name, shortened to fit a panel."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def short(value: float, _: Any = None, space: str = "") -> str:
    """A number with three digits and k, M or G, e.g. "1.5M"; Matplotlib passes a tick's position as second argument."""
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{space}{sign}"
    return f"{value:.3g}{space}"


def bytes_axis(axes: Axes) -> None:
    """Label a logarithmic axis of bytes."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v, space=" ") + "B"))
    low, high = axes.get_xlim()
    if high / low < 30:  # such a range has one power of ten at most, too few ticks
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("bytes of the embedding")
