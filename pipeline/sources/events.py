"""Makes the rows of a table interactions of users and items."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.source import BASKET, EVENT, BadData, Interacting, Source


@dataclass(frozen=True)
class Events:
    """What the columns of a table say of interactions.

    Args:
        about: what the rows are about.
        event: column of the type of an event; None if there are no types.
        basket: column of what belongs together, e.g. an invoice; None if there is none.
    """

    about: Interacting
    event: str | None
    basket: str | None

    def of(self, table: Source) -> Source:
        """The rows of a table as interactions.

        A row that lacks its user, its item, its type or, if it is a target, its basket is left out; the notes count it.

        Args:
            table: among its fields are the categorical ones that hold the types and the baskets.

        Raises:
            BadData: if a field has no role, or, when the batches are read, if no row is left.
        """
        notes: list[str] = []
        fields = {name: kind for name, kind in table.fields.items() if name not in (self.event, self.basket)}
        return dataclasses.replace(
            table, fields=fields, batches=self._batches(table, notes), notes=notes, interactions=self.about
        )

    def _batches(self, table: Source, notes: list[str]) -> Iterator[pa.RecordBatch]:
        needed = (self.about.user, self.about.item, self.event, self.basket)  # the targets depend on the event
        counts = {name: 0 for name in needed if name is not None}
        rows = 0
        for batch in table.batches:
            for name in counts:
                there = has_value(batch[name])
                if name == self.basket:
                    there = pc.or_(there, pc.invert(self._targets(batch)))
                counts[name] += there.false_count
                batch = batch.filter(there)
            rows += len(batch)
            yield self._renamed(batch)
        left_out = [f"{count:,} rows without a value in {name!r}" for name, count in counts.items() if count]
        if left_out and not rows:
            remedy = "check the columns that the options name"
            raise BadData("no row is an interaction", file=table.origin, value=left_out, remedy=remedy)
        notes += [*table.notes, *(f"left out {lost}" for lost in left_out)]

    def _targets(self, batch: pa.RecordBatch) -> pa.Array:
        """(n,) which rows a model may be asked to predict."""
        if self.event is None or self.about.targets is None:
            return pa.repeat(True, len(batch))
        return pc.is_in(batch[self.event].cast(pa.string()), pa.array(self.about.targets, pa.string()))

    def _renamed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns with the names and types that `Source` gives to events and baskets."""
        columns = {name: batch[name] for name in batch.schema.names if name not in (self.event, self.basket)}
        if self.event is not None:
            columns[EVENT] = batch[self.event].cast(pa.string())
        if self.basket is not None:
            columns[BASKET] = pc.fill_null(batch[self.basket].cast(pa.string()), "")
        return pa.RecordBatch.from_pydict(columns)


def has_value(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """(n,) whether there is a value, and if it is a text, whether it is not empty."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.fill_null(pc.not_equal(column, ""), False)
    return pc.is_valid(column)
