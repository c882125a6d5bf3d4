"""All users, or all items: their numbers, and what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.encoding.raw_table import RawTable, plain


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The k users or items of a log, by number: those with more training rows first, ties by value; then those without
    training rows, by first appearance in the log.

    Args:
        keys: (k,) raw values that identify them.
        counts: (k,) int64 training rows.
        numbers: (k,) int64 number of each one, in the order of the log's own numbers.
        columns: (k,) raw values of each field, by name. They are those of the first event in the log.
    """

    keys: pa.Array
    counts: np.ndarray
    numbers: np.ndarray
    columns: Mapping[str, pa.Array]

    @classmethod
    def of(
        cls, table: RawTable, about: Mapping[str, Any], role: str, firsts: np.ndarray, training: np.ndarray
    ) -> Catalogue:
        """The catalogue of all users or of all items.

        Args:
            table: of a log.
            about: the entry ``interactions`` of its raw.json.
            role: of their fields.
            firsts: (k,) raw row of the first event of each, by the log's own numbers.
            training: (n,) the log's own number of the user or item of each training row.
        """
        names = [name for name, its in about["roles"].items() if its == role]
        columns = {name: table.whole(name).take(pa.array(firsts)) for name in names}
        keys = plain(columns[about["keys"][role]])
        counts = np.bincount(training, minlength=len(firsts))
        by_value = np.empty(len(firsts), dtype=np.int64)
        by_value[pc.sort_indices(keys).to_numpy()] = np.arange(len(firsts))
        ties = np.where(counts > 0, by_value, np.arange(len(firsts)))
        order = np.lexsort((ties, -counts))
        numbers = np.empty_like(order)
        numbers[order] = np.arange(len(order))
        columns = {name: column.take(pa.array(order)) for name, column in columns.items()}
        return cls(keys.take(pa.array(order)), counts[order], numbers, columns)

    def __len__(self) -> int:
        return len(self.counts)

    def table(self) -> pa.Table:
        """Number, key as text, and training rows."""
        numbers = pa.array(np.arange(len(self.keys), dtype=np.int32))
        return pa.table({"number": numbers, "key": self.keys.cast(pa.string()), "rows": pa.array(self.counts)})
