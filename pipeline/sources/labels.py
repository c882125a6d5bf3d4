"""Reads a column of binary labels: 0 and 1, false and true, no and yes, or one value that means 1 and all others."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.source import BadColumn

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
Meaning = Decimal | str  # what a spelling stands for: equal for "1" and "1.0", and for "Yes" and "yes"
PAIRS: list[dict[Meaning, int]] = [{Decimal(0): 0, Decimal(1): 1}, {"false": 0, "true": 1}, {"no": 0, "yes": 1}]
MOST_NAMED = 8  # values that a note names
REMEDY = (
    "correct it, name the value that means 1 with the option 'positive' (every other value then means 0), or set the "
    "option 'label_type' to number"
)


def meaning(text: str) -> Meaning:
    """What a spelling stands for: a number, or a text without spaces around it and without capitals."""
    text = text.strip()
    return Decimal(text) if NUMBER.fullmatch(text) else text.casefold()


class BinaryLabels:
    """Turns the values of one column, batch by batch, into labels, and counts them.

    Args:
        column: its name.
        positive: the value that means 1, in any spelling, where every other value means 0. None: the first value
            decides which one of `PAIRS` all values belong to.
    """

    def __init__(self, column: str, positive: str | int | float | None) -> None:
        self.column = column
        self.positive = None if positive is None else meaning(str(positive))
        self.given = positive
        self.pair: dict[Meaning, int] | None = None
        self.counts: dict[int, Counter[str]] = {0: Counter(), 1: Counter()}

    def __call__(self, column: pa.Array) -> pa.Array:
        """The labels (n,) uint8 of a batch of texts, numbers or booleans.

        Raises:
            BadColumn: if a value is missing or has no meaning.
        """
        if pa.types.is_float16(column.type):
            column = column.cast(pa.float32())  # pyarrow does not group half floats
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise BadColumn(self.column, "is missing", remedy="fill it in or remove the row", row=row)
        if not len(column):
            return pa.array([], pa.uint8())
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.string())
        encoded = column.dictionary_encode()
        texts = [str(value) for value in encoded.dictionary.to_pylist()]
        codes = encoded.indices.to_numpy()
        labels = [self._label(text) for text in texts]
        if None in labels:
            row = int(np.argmax(np.isin(codes, [code for code, label in enumerate(labels) if label is None])))
            pairs = [self.pair] if self.pair else PAIRS
            words = ", or ".join(f"{no} or {yes}" for no, yes in pairs)
            raise BadColumn(self.column, f"must be {words}", remedy=REMEDY, row=row, value=texts[codes[row]])
        for text, label, rows in zip(texts, labels, np.bincount(codes, minlength=len(texts)).tolist(), strict=True):
            self.counts[int(label or 0)][text] += rows
        return pa.array(np.array(labels, np.uint8)[codes])

    def _label(self, text: str) -> int | None:
        """The label of a value; None if it has none."""
        found = meaning(text)
        if self.positive is not None:
            return int(found == self.positive)
        if self.pair is None:
            self.pair = next((pair for pair in PAIRS if found in pair), None)
        return None if self.pair is None else self.pair.get(found)

    def check(self) -> None:
        """Raise BadColumn if no value was the one that means 1. Call it after the last batch."""
        if self.positive is not None and self.counts[0] and not self.counts[1]:
            raise BadColumn(
                self.column,
                "must hold the value of the option 'positive'",
                remedy=f"the column holds {self._named(0)}; write one of them in quotes, "
                f'as in positive: "{self.counts[0].most_common(1)[0][0]}"',
                value=self.given,
            )

    def note(self) -> str | None:
        """What became of every value, as a sentence; None if they were written 0 and 1."""
        if self.positive is None and {*self.counts[0], *self.counts[1]} <= {"0", "1"}:
            return None
        return f"label {self.column!r}: {self._named(1)} -> 1, {self._named(0)} -> 0"

    def _named(self, label: int) -> str:
        counts = self.counts[label]
        named = counts.most_common(MOST_NAMED)
        words = ", ".join(f"{rows:,} {'row' if rows == 1 else 'rows'} {text!r}" for text, rows in named)
        others = counts.total() - sum(rows for _, rows in named)
        return words + (f" and {others:,} rows of {len(counts) - len(named):,} other values" if others else "")
