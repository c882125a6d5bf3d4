"""Reads a column of bags: lists, or texts that hold several values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.source import BadColumn

BAG_TYPE = pa.list_(pa.string())


class Bags:
    """Turns one column, batch by batch, into lists of strings.

    Args:
        column: its name.
        separator: between the values of a bag that is stored as text.
        missing: texts between separators that mean no value; they are dropped and counted.
    """

    def __init__(self, column: str, separator: str, missing: Sequence[str]) -> None:
        self.column, self.separator = column, separator
        self.missing = pa.array(sorted({"", *missing}), pa.string())
        self.dropped = 0

    def __call__(self, column: pa.Array) -> pa.Array:
        """Lists (n,) of strings, from texts or lists; a null stays null.

        Raises:
            BadColumn: if the column holds lists of something that is not a text or a number.
        """
        return self._of_text(column) if pa.types.is_string(column.type) else self._of_lists(column)

    def _of_text(self, column: pa.Array) -> pa.Array:
        lists = pc.split_pattern(column, self.separator)
        values = lists.flatten()
        trimmed = pc.utf8_trim_whitespace(values)
        keep = pc.invert(pc.is_in(trimmed, self.missing))
        if pc.all(keep).as_py():
            return lists if trimmed.equals(values) else _lists_like(lists, trimmed)
        kept = keep.to_numpy(zero_copy_only=False)
        # A text without any value is a row of length 1 here, and is not counted: it is a missing value.
        self.dropped += int(np.sum(~kept & (np.repeat(_lengths(lists), _lengths(lists)) > 1)))
        return _lists_like(lists, trimmed.filter(keep), kept)

    def _of_lists(self, column: pa.Array) -> pa.Array:
        kind = column.type.value_type
        if pa.types.is_floating(kind):  # pandas writes a missing number as NaN
            column = column.cast(pa.list_(kind))
            values = column.flatten()
            keep = pc.invert(pc.fill_null(pc.is_nan(values), True))
            kept = keep.to_numpy(zero_copy_only=False)
            self.dropped += int(np.sum(~kept))
            column = column if kept.all() else _lists_like(column, values.filter(keep), kept)
        try:
            return column.cast(BAG_TYPE)
        except pa.ArrowException as error:
            raise BadColumn(
                self.column,
                "must hold lists of texts or numbers",
                remedy="store the values as texts, or take another column",
                value=str(column.type),
            ) from error

    def note(self) -> str | None:
        """How many empty or missing values between separators were dropped, as a sentence; None if none were."""
        if not self.dropped:
            return None
        return f"bag {self.column!r}: dropped {self.dropped:,} empty or missing values within bags"


def _lengths(lists: pa.Array) -> np.ndarray:
    lengths: np.ndarray = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return lengths


def _lists_like(lists: pa.Array, values: pa.Array, kept: np.ndarray | None = None) -> pa.Array:
    """The same rows with other values: one for each old value, or for each old value that is kept."""
    lengths = _lengths(lists)
    if kept is not None:
        rows = np.repeat(np.arange(len(lists)), lengths)
        lengths = np.bincount(rows[kept], minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=lists.is_null())
