"""Makes the rows of a table interactions of users and items."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.source import BASKET, EVENT, ITEM, USER, BadData, Interacting, Source
from pipeline.workflow.validation import Section

PLACE = "dataset.options: interactions"


class Events(Section):
    """The columns of a table that make its rows interactions of users and items."""

    user: str
    """identifies the user; a categorical field. A row without it is left out."""
    item: str
    """identifies the item; a categorical field. A row without it is left out."""
    users: Sequence[str] = ()
    """the other fields that describe users."""
    items: Sequence[str] = ()
    """the other fields that describe items."""
    event: str | None = None
    """the type, e.g. purchase or return. A row without it is left out."""
    targets: Sequence[str | int] | None = None
    """the types that a model may be asked to predict; the others only stand in histories. null: all types."""
    basket: str | None = None
    """what belongs together, e.g. an order. A target without it is left out."""

    @property
    def columns(self) -> list[str]:
        """The columns that are read as categorical ones, besides the fields of ``users`` and ``items``."""
        return [name for name in (self.user, self.item, self.event, self.basket) if name is not None]

    def of(self, table: Source, history: int) -> Source:
        """The rows of a table as interactions. The notes count the rows that are left out.

        Args:
            table: among its fields are all `columns`.
            history: interactions before a query that suit these data.

        Raises:
            ValueError: if the fields do not fit, or, as `BadData`, when the batches are read, if no row is left.
        """
        if self.targets is not None and self.event is None:
            raise ValueError(f"{PLACE}: targets must be null without event, got {self.targets}; name that column")
        notes: list[str] = []
        fields = {name: kind for name, kind in table.fields.items() if name not in (self.event, self.basket)}
        return dataclasses.replace(
            table,
            fields=fields,
            batches=self._batches(table, notes),
            defaults={"history": history},
            notes=notes,
            interactions=Interacting(self._roles(fields), self.user, self.item, self._types),
        )

    @property
    def _types(self) -> list[str] | None:
        return None if self.targets is None else [str(target) for target in self.targets]

    def _roles(self, fields: Iterable[str]) -> dict[str, str]:
        """Whom each field describes."""
        described = [*self.users, *self.items]
        others = [name for name in fields if name not in (self.user, self.item)]
        if sorted(described) != sorted(others):
            raise ValueError(
                f"{PLACE}: users and items must together name each of the fields {others} once, got {described}; "
                "say of each whether it describes the user or the item"
            )
        return {name: USER if name == self.user or name in self.users else ITEM for name in fields}

    def _batches(self, table: Source, notes: list[str]) -> Iterator[pa.RecordBatch]:
        counts = dict.fromkeys(self.columns, 0)  # the basket last: whether it is needed depends on the type
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
        if self.event is None or self._types is None:
            return pa.repeat(True, len(batch))
        return pc.is_in(batch[self.event].cast(pa.string()), pa.array(self._types, pa.string()))

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
