"""The settings for a described table, with the reasons beside them, and the table of its columns."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from pipeline.describing.column import Column, one_line
from pipeline.describing.commented import Quoted, Said
from pipeline.describing.describe import Description
from pipeline.describing.kinds import LEFT_OUT, Use
from pipeline.describing.layout import Layout
from pipeline.describing.settings import cardinality, rule_for_numbers, size_of
from pipeline.sources.source import BAG, CATEGORICAL, NUMERIC

SHARES = {"train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
DEFAULT_BAG, MOST_IN_BAG = 8, 50  # values of a bag that are kept by default, and at most
WIDTHS = (24, 12, 9, 8, 34)  # of the columns of the printed table; the last one has no end


def overlay(description: Description, path: str) -> dict[str, Any]:
    """The settings in which the table differs from params.yaml.

    Args:
        description: of the table.
        path: of the table, as ``dataset.path`` names it.

    Returns:
        The sections of params.yaml, for `pipeline.describing.commented`.
    """
    size = size_of(description.rows.total)
    rows = f"for {description.rows.total:,} rows, {size.like}"
    return {
        "dataset": {"name": "table", "path": path, "options": _options(description)},
        "encode": _encode(description),
        "dim": Said(size.dim, f"full tables have {_bytes(description)}"),
        "candidates": {"described": list(size.dims)},
        "method": {
            "options": {"autodim": {"dims_weight": Said(0.0, "as for all public data; 0.05 is for planted data")}}
        },
        "search": {
            "candidates": "described",
            "batch_size": Said(size.batch_size, rows),
            "epochs": size.search_epochs,
            "lr": size.lr,
        },
        "retrain": {"batch_size": size.batch_size, "epochs": size.retrain_epochs, "lr": size.lr},
    }


def heading(description: Description, path: str) -> list[str]:
    """Lines that say what was read and what is left out, to stand above the settings."""
    rows, layout = description.rows, description.layout
    about = "" if layout is None else "about "
    part = f"{len(rows.table):,} of {about}{rows.total:,} rows, {rows.where}"
    number = f"all {rows.total:,} rows" if rows.whole else part
    lines = [f"Settings for {path}: {layout.words if layout else 'Parquet'}, {number}."]
    if not rows.whole:
        lines.append("Numbers of values and shares are those of the rows read; the table may have more values.")
    lines.append("Correct what is wrong: move the line of a column to another list, or delete it.")
    left_out = description.of_kind(LEFT_OUT)
    if left_out:
        lines += ["", "Left out:"]
        lines += [f"  {one_line(name) or '(no name)'}: {description.uses[name].why}" for name in left_out]
    return lines


def table(description: Description) -> str:
    """The columns of the table, for the console: what they hold, what they are used as, and why."""
    used = [(description.label.column, "label", description.label.why)]
    for name, column in description.columns.items():
        use = description.uses[name]
        used.append((column, "time" if name == description.time else use.kind, use.why))
    rows = [("column", "use", "values", "missing", "examples", "why")]
    for column, kind, why in used:
        rows.append((column.name, kind, f"{column.distinct:,}", f"{column.missing:.1%}", column.examples, why))
    return "\n".join("  ".join([*map(_cell, row, WIDTHS), row[-1]]) for row in rows)


def _cell(text: str, width: int) -> str:
    return one_line(text, width).ljust(width)


def _options(description: Description) -> dict[str, Any]:
    label, layout = description.label, description.layout
    options: dict[str, Any] = {
        "label": Said(label.name, f"{label.why}; {label.mean:.1%} of the rows read have label 1")
    }
    if label.positive is not None:
        options["positive"] = Said(Quoted(label.positive), "the value that means 1")
    if description.time is not None:
        options["time"] = Said(description.time, _said(description, description.time))
    if layout is not None:
        options |= _of_text(description, layout)
    for kind in (CATEGORICAL, NUMERIC, BAG):
        names = description.of_kind(kind)
        if names:
            options[kind] = [Said(name, _said(description, name)) for name in names]
    if description.separator is not None:
        options["separator"] = description.separator
    dates = {name: Said(list(description.uses[name].parts), _said(description, name)) for name in description.dates}
    return options | ({"dates": dates} if dates else {})


def _of_text(description: Description, layout: Layout) -> dict[str, Any]:
    """The options of a text file."""
    options: dict[str, Any] = {"delimiter": layout.delimiter}
    if layout.names is not None:
        columns = {**description.columns, description.label.name: description.label.column}
        named = [Said(name, f"e.g. {columns[name].examples}") for name in layout.names]
        options["names"] = Said(named, "the first line holds no names; put better ones here and below")
    if description.missing:
        options["missing"] = list(description.missing)
    if layout.encoding != "utf-8":
        options["encoding"] = Said(layout.encoding, "a guess: the file is not UTF-8")
    return options


def _encode(description: Description) -> dict[str, Any]:
    size = size_of(description.rows.total)
    if description.time is None:
        split = Said(
            "random",
            "no column of times; if the rows are in the order of time, add one, or the future leaks into training",
        )
    else:
        split = Said("time", f"in the order of {one_line(description.time)}: models are judged on later rows")
    settings = {
        "split": {"by": split, **SHARES},
        "min_count": Said(size.min_count, "rows that a value needs for its own id"),
    }
    numbers = [description.columns[name] for name in description.of_kind(NUMERIC)]
    if numbers:
        settings["numeric"] = Said(*rule_for_numbers(numbers))
    longest = max((_pieces(column, use) for column, use in _pairs(description, BAG)), default=0)
    if longest > DEFAULT_BAG:
        seen = f"the most values in a bag are {longest}"
        settings["max_bag"] = Said(min(longest, MOST_IN_BAG), seen)
    return settings


def _pieces(column: Column, use: Use) -> int:
    """The most values of a bag in one row."""
    values = column.values if column.is_list else pc.split_pattern(column.texts, use.separator)
    return int(pc.max(pc.list_value_length(values)).as_py() or 0)


def _said(description: Description, name: str) -> str:
    """The comment on a column."""
    column, why = description.columns[name], description.uses[name].why
    missing = f", {column.missing:.1%} missing" if column.missing else ""
    return f"{column.distinct:,} values{missing}, e.g. {column.examples}: {why}"


def _pairs(description: Description, *uses: str) -> list[tuple[Column, Use]]:
    return [(description.columns[name], description.uses[name]) for kind in uses for name in description.of_kind(kind)]


def _bytes(description: Description) -> str:
    """The bytes of full tables, in words."""
    size = size_of(description.rows.total)
    numbers = [column for column, _ in _pairs(description, NUMERIC)]
    rule = rule_for_numbers(numbers)[0]
    ids = sum(
        cardinality(column, use.kind, rule, size.min_count)
        for column, use in _pairs(description, CATEGORICAL, NUMERIC, BAG)
    )
    return f"{'about' if description.rows.whole else 'at least'} {4 * size.dim * ids:,} bytes"
