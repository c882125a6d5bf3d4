"""The meaning of the columns of a table: the label, the time, the fields, and what is made of dates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.bags import Bags
from pipeline.sources.delimited import CORRECT, Column
from pipeline.sources.labels import BinaryLabels
from pipeline.sources.plain import DATES, KEPT, plain
from pipeline.sources.source import BAG, CATEGORICAL, LABEL, NUMERIC, TIME, BadColumn
from pipeline.sources.times import Part, Times


def derived(column: str, parts: Sequence[Part]) -> dict[str, Part]:
    """The part that each field of a column of dates holds."""
    return {f"{column}_{part}": part for part in parts}


class Columns:
    """The meaning of a table's columns; see `read` and `unlabelled`.

    It reads batches in their order, and counts what it changes.

    Attributes:
        facts: ``time_unit`` of the column of times, once it is read, unless it holds whole numbers.
    """

    def __init__(
        self,
        label: str | None,
        labels: BinaryLabels | None,
        time: str | None,
        fields: dict[str, str],
        dates: Mapping[str, Sequence[Part]],
        separator: str,
        missing: Sequence[str],
        keep: Sequence[str] = (),
    ) -> None:
        self.label, self.labels, self.time, self.fields = label, labels, time, fields
        self.dates = {column: derived(column, parts) for column, parts in dates.items()}
        self.kept = [name for name in keep if name not in self.all_fields]
        # What each column of the file is for: KEPT, LABEL, TIME, DATES or the kind of a field.
        self.roles = dict.fromkeys(self.kept, KEPT) | ({label: LABEL} if label else {}) | dict.fromkeys(dates, DATES)
        self.roles |= ({time: TIME} if time else {}) | fields
        self.times = {name: Times(name) for name, role in self.roles.items() if role in (TIME, DATES)}
        self.facts: dict[str, str] = {}
        self.bags = {name: Bags(name, separator, missing) for name, kind in fields.items() if kind == BAG}

    @property
    def all_fields(self) -> dict[str, str]:
        """Kind of every field, those of ``dates`` last."""
        return self.fields | {name: CATEGORICAL for derived in self.dates.values() for name in derived}

    def of_text(self) -> list[Column]:
        """The columns that a text file must have."""
        number = {NUMERIC} if self.labels else {NUMERIC, LABEL}
        return [
            Column(name, pa.float64() if role in number else pa.string(), required=role in (LABEL, TIME))
            for name, role in self.roles.items()
        ]

    def plain(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """The columns with Parquet's types, cast to those that `named` takes.

        Raises:
            BadColumn: if the type of a column does not suit its role.
        """
        return {name: plain(name, batch[name], role) for name, role in self.roles.items()}

    def named(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns with the names and types of a `Source`.

        Raises:
            BadColumn: if a value does not suit its column.
        """
        columns = {name: batch[name] for name in self.kept}
        if self.label:
            label = batch[self.label]
            columns[LABEL] = self.labels(label) if self.labels else self._numbers(self.label, label)
        times = {name: read(batch[name]) for name, read in self.times.items()}
        if self.time:
            columns[TIME] = self.times[self.time].order(times[self.time])
            if unit := self.times[self.time].unit:
                self.facts["time_unit"] = unit
        for name in self.fields:
            columns[name] = self.bags[name](batch[name]) if name in self.bags else batch[name]
        for column, derived in self.dates.items():
            for name, part in derived.items():
                columns[name] = self.times[column].part(times[column], part)
        return pa.RecordBatch.from_pydict(columns)

    @staticmethod
    def _numbers(name: str, column: pa.Array) -> pa.Array:
        """Labels that are any finite number."""
        numbers = pa.nulls(len(column), pa.float64())
        if not pa.types.is_string(column.type):
            numbers = column.cast(pa.float64(), safe=False)  # large integers are rounded
        row = pc.index(pc.fill_null(pc.is_finite(numbers), False), False).as_py()
        if row >= 0:
            value = str(column[row].as_py())
            raise BadColumn(name, "must be a finite number", remedy=CORRECT, row=row, value=value)
        return numbers

    def notes(self) -> list[str]:
        """What was changed, as sentences."""
        notes = [self.labels.note()] if self.labels else []
        notes += [times.note() for times in self.times.values()]
        notes += [bags.note() for bags in self.bags.values()]
        return [note for note in notes if note]
