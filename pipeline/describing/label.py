"""Which column is the label, and which of its values means 1."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.describing.column import Column
from pipeline.describing.kinds import words
from pipeline.workflow.validation import suggestion

NAMED = words(
    "bought buy churn churned class click clicked clicks conversion convert converted default fraud install installed "
    "label liked outcome purchase purchased response subscribed survived target y"
)
QUESTIONS = {"is", "has", "did", "was"}
POSITIVE = {"1", "1.0", "true", "t", "yes", "y", "click", "clicked", "positive", "pos", "good", "buy", "bought"}
WITHOUT_OPTION = ({"0", "1"}, {"0.0", "1.0"}, {"true", "false"})  # values of numbers and booleans that are read as 0, 1


@dataclass(frozen=True)
class Label:
    """The label of a table.

    Args:
        column: of the label.
        positive: the option of this name of the data set ``table``: the value that means 1; None for 0 and 1.
        why: how column and value were chosen.
        values: (n,) 0 or 1 in the rows that were read; NaN where missing.
    """

    column: Column
    positive: str | None
    why: str
    values: np.ndarray

    @property
    def name(self) -> str:
        return self.column.name

    @property
    def mean(self) -> float:
        return float(np.nanmean(self.values))


def label_of(columns: Mapping[str, Column], asked: str | None, positive: str | None) -> Label:
    """The label: the column that the user names, or the only one of two values that is named like one.

    Args:
        columns: by name.
        asked: the name that the user gives; None to find it.
        positive: the value that means 1, if the user gives it.

    Raises:
        ValueError: if the column does not exist, has no two values, or cannot be found; the message lists candidates.
    """
    name = _asked(columns, asked) if asked is not None else _found(columns)
    column = columns[name]
    values = column.texts.to_pylist()
    if positive is not None and positive not in values:
        raise ValueError(f"--positive must be a value of column {name!r}, got {positive!r}; it has {_some(values)}")
    if positive is None and len(values) != 2:
        raise ValueError(
            f"label {name!r} must have two values, got {_some(values)}; name the value that means 1 with --positive, "
            "or another column with --label"
        )
    how = "named by --label" if asked is not None else "two values, and named like a label"
    one = positive or _positive(values)
    flags = pc.equal(column.values.cast(pa.string()), one)
    numbers = pc.cast(flags, pa.float64()).to_numpy(zero_copy_only=False)
    read = not column.is_text or set(values) == {"0", "1"}
    plain = read and set(values) in WITHOUT_OPTION and one.lower() in POSITIVE
    return Label(column, None if plain else one, how, numbers)


def _asked(columns: Mapping[str, Column], name: str) -> str:
    if name not in columns:
        raise ValueError(f"--label: there is no column {name!r}{suggestion(name, columns)}; there are {_some(columns)}")
    return name


def _found(columns: Mapping[str, Column]) -> str:
    binary = [name for name, column in columns.items() if column.distinct == 2]
    named = [name for name in binary if words(name) & NAMED] or [name for name in binary if words(name) & QUESTIONS]
    if len(named) == 1:
        return named[0]
    if not binary:
        raise ValueError(
            "no column has two values, so none can be the label; name the column with --label and the value that means "
            f"1 with --positive; there are {_some(columns)}"
        )
    listed = "; ".join(f"{name!r} ({', '.join(columns[name].texts.to_pylist())})" for name in named or binary)
    raise ValueError(f"name the column of the label with --label (make: LABEL=...); these have two values: {listed}")


def _positive(values: list[str]) -> str:
    """The value that means 1: the larger number, a word for it, or the less frequent of two texts."""
    with contextlib.suppress(ValueError):
        return max(values, key=float)
    return next((value for value in values if value.lower() in POSITIVE), values[1])


def _some(values: Iterable[str], most: int = 10) -> str:
    texts = [repr(value) for value in values]
    return ", ".join(texts[:most]) + (f", and {len(texts) - most} more" if len(texts) > most else "")
