"""Describes a table of one's own: what each column is, which is the label, and the settings that suit it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.datasets.table import ENDINGS
from pipeline.describing import excerpt, kinds
from pipeline.describing.column import Column
from pipeline.describing.kinds import DATE, LEFT_OUT, Use
from pipeline.describing.label import Label, label_of
from pipeline.describing.layout import Layout, layout_of, missing_texts
from pipeline.describing.leak import DOUBTFUL, auc_alone
from pipeline.describing.settings import LEAST_TIMES
from pipeline.encoding.fields import LEAK
from pipeline.sources import parquet
from pipeline.sources.files import table_files
from pipeline.sources.source import BAG, CATEGORICAL, BadData
from pipeline.workflow.validation import suggestion

TIME_WORDS = {"at", "date", "datetime", "dt", "time", "timestamp", "ts", "when"}


@dataclass(frozen=True)
class Description:
    """A table, and what its columns are used as.

    Args:
        rows: that were read.
        layout: of a text file; None for Parquet.
        missing: texts that mean a missing value.
        label: the label.
        time: column that orders the rows, if there is one.
        columns: all columns but the label, in the order of the file.
        uses: of these columns, by name.
    """

    rows: excerpt.Rows
    layout: Layout | None
    missing: Sequence[str]
    label: Label
    time: str | None
    columns: Mapping[str, Column]
    uses: Mapping[str, Use]

    def of_kind(self, kind: str) -> list[str]:
        """Names of the columns of a kind."""
        return [name for name, use in self.uses.items() if use.kind == kind]

    @property
    def dates(self) -> list[str]:
        """Names of the columns whose parts, such as the hour, are fields."""
        return [name for name in self.of_kind(DATE) if self.uses[name].parts]

    @property
    def separator(self) -> str | None:
        """The separator of all bags that are stored as text."""
        return next((use.separator for use in self.uses.values() if use.kind == BAG and use.separator), None)


def described(
    path: Path, label: str | None = None, positive: str | None = None, time: str | None = None
) -> Description:
    """Read some rows of a table and decide what its columns are.

    Args:
        path: a CSV, TSV or Parquet file, also gzipped or in a zip, or a folder of part files.
        label, positive, time: column of the label, its value that means 1, and the column that orders the rows; None to
            find them.

    Raises:
        ValueError: if the label is not clear or no column can be a field; as `BadData`, if the file cannot be read.
        NotFound: if there is no file.
    """
    rows, layout, missing = _read(path)
    if not len(rows.table):
        raise BadData("has no rows", file=path, remedy="give a table with at least two different labels")
    columns = _columns(rows, missing)
    found = label_of(columns, label, positive)
    uses = {name: kinds.use_of(column) for name, column in columns.items()}
    if time is not None:
        _check_time(time, uses)
    uses |= _copies(columns, found.name)
    others = {name: column for name, column in columns.items() if name != found.name}
    uses = _with_one_separator({name: _unless_leak(column, uses[name], found) for name, column in others.items()})
    order = time or _time(others, uses)
    uses = {name: _as_field(name, use, name == order, columns) for name, use in uses.items()}
    if not any(use.parts or use.kind not in (LEFT_OUT, DATE) for use in uses.values()):
        reasons = "; ".join(f"{name!r} {use.why}" for name, use in uses.items())
        raise ValueError(f"{path}: no column can be a field: {reasons}; give a table with at least one")
    return Description(rows, layout, missing, found, order, others, uses)


def _read(path: Path) -> tuple[excerpt.Rows, Layout | None, list[str]]:
    files = table_files(path, ENDINGS)
    if parquet.is_parquet(files[0]):
        return excerpt.read_parquet(files), None, []
    lines = excerpt.text(files)
    layout = layout_of(lines)
    rows = excerpt.read_text(lines, layout.of(lines))
    return rows, layout, missing_texts(rows.table.columns)


def _columns(rows: excerpt.Rows, missing: Sequence[str]) -> dict[str, Column]:
    columns = {}
    for name, stored in zip(rows.table.schema.names, rows.table.columns, strict=True):
        kind = stored.type.value_type if pa.types.is_dictionary(stored.type) else stored.type
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            kind = pa.string()
        values = stored.cast(kind).combine_chunks()
        if pa.types.is_float32(kind) or pa.types.is_float64(kind):
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
        elif missing:
            values = pc.if_else(pc.is_in(values, pa.array(missing, kind)), pa.scalar(None, kind), values)
        columns[name] = Column(name, values, rows.whole)
    return columns


def _check_time(name: str, uses: Mapping[str, Use]) -> None:
    valid = [other for other, use in uses.items() if use.orders]
    if name not in valid:
        there = f"there are {', '.join(map(repr, valid))}" if valid else "there is none"
        raise ValueError(
            f"--time must be a column of dates, times or Unix times, got {name!r}{suggestion(name, valid)}; {there}"
        )


def _copies(columns: Mapping[str, Column], label: str) -> dict[str, Use]:
    """The columns that are exact copies of the label or of an earlier column, left out."""
    firsts: dict[tuple[int, int, str], list[Column]] = {}
    copies = {}
    for column in sorted(columns.values(), key=lambda column: column.name != label):
        alike = firsts.setdefault((column.distinct, column.values.null_count, column.examples), [])
        original = next((first for first in alike if first.values.equals(column.values)), None)
        if original is None:
            alike.append(column)
        elif column.distinct > 1:
            copies[column.name] = Use(LEFT_OUT, f"is a copy of {original.name!r}")
    return copies


def _unless_leak(column: Column, use: Use, label: Label) -> Use:
    """The use of a column, or LEFT_OUT if it tells the label; with a remark if it nearly does."""
    if use.kind == DATE:  # its values are not used as they are, but whether there is one may tell the label
        column = Column(column.name, column.values.is_null())
    alone = None if use.kind == LEFT_OUT or column.is_list else auc_alone(column, label.values)
    if alone is None or alone < DOUBTFUL:
        return use
    if alone >= LEAK:
        return Use(LEFT_OUT, f"tells the label: alone it has an AUC of {alone:.3f} on rows held out")
    return replace(use, why=f"{use.why}; check that it is known before the label: alone it has an AUC of {alone:.3f}")


def _with_one_separator(uses: Mapping[str, Use]) -> dict[str, Use]:
    """The same uses, where bags with a rarer separator are categorical: the data set has one separator."""
    counts = Counter(use.separator for use in uses.values() if use.separator)
    usual = counts.most_common(1)[0][0] if counts else None
    return {
        name: use if use.separator in (None, usual) else Use(CATEGORICAL, f"{use.why}, but other bags by {usual!r}")
        for name, use in uses.items()
    }


def _time(columns: Mapping[str, Column], uses: Mapping[str, Use]) -> str | None:
    """The column of times with the most different values; one that is named like a time goes first."""
    valid = {
        name: column
        for name, column in columns.items()
        if uses[name].orders and not column.values.null_count and column.distinct >= LEAST_TIMES
    }
    return max(valid, key=lambda name: (bool(kinds.words(name) & TIME_WORDS), valid[name].distinct), default=None)


def _as_field(name: str, use: Use, orders_rows: bool, columns: Collection[str]) -> Use:
    """The use of a column as a field. A part of a date is no field if the table has a column of its name; a date
    without parts that can be fields is left out unless it orders the rows."""
    use = replace(use, parts=tuple(part for part in use.parts if f"{name}_{part}" not in columns))
    if use.kind == DATE and not use.parts and not orders_rows:
        return Use(LEFT_OUT, f"has {use.why}, which can only order the rows")
    return use
