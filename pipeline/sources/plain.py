"""Casts a column of Parquet to a type that its reader, or the contract of data sets, allows."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.files import LONGEST_LINE
from pipeline.sources.source import BAG, CATEGORICAL, LABEL, NUMERIC, TIME, BadColumn

DATES = "dates"  # the kind of a column that fields are derived from
KEPT = "kept"  # the kind of a column that is passed on unchanged
EXACT = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}  # floats tell whole numbers below this apart


def plain(name: str, column: pa.Array, role: str) -> pa.Array:
    """A Parquet column, cast to a type that its reader, or `Source`, allows.

    Raises:
        BadColumn: if its type does not suit the role, or a text is longer than a line of a text file may be.
    """
    types = pa.types
    if role == KEPT:
        return column
    _check_lengths(name, column)
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    stored = column.type
    if types.is_null(stored):
        return column.cast({NUMERIC: pa.float64(), BAG: pa.list_(pa.string())}.get(role, pa.string()))
    if types.is_large_string(stored) or types.is_string_view(stored):
        column = column.cast(pa.string())
    elif types.is_fixed_size_list(stored):
        column = column.cast(pa.list_(stored.value_type))
    elif types.is_boolean(stored) and role in (CATEGORICAL, NUMERIC):
        column = column.cast(pa.uint8())
    elif types.is_duration(stored) and role in (CATEGORICAL, NUMERIC):
        column = column.cast(pa.int64())
    elif types.is_decimal(stored) and role == NUMERIC:
        column = column.cast(pa.float64())
    elif (types.is_floating(stored) or types.is_decimal(stored)) and role in (CATEGORICAL, TIME, DATES):
        column = _whole(name, column)
    kind = column.type
    is_text, is_whole = types.is_string(kind), types.is_integer(kind)
    is_moment = types.is_date(kind) or types.is_time(kind) or types.is_timestamp(kind)
    is_number = is_whole or types.is_floating(kind)
    words, suits = {
        CATEGORICAL: ("text or whole numbers", is_text or is_whole),
        NUMERIC: ("numbers", is_number),
        BAG: ("text or lists", is_text or types.is_list(kind) or types.is_large_list(kind)),
        LABEL: ("numbers or text", is_number or is_text or types.is_boolean(kind) or types.is_decimal(kind)),
        TIME: ("whole numbers, ISO 8601 text, dates or times", is_whole or is_text or is_moment),
        DATES: ("whole numbers, ISO 8601 text, dates or times", is_whole or is_text or is_moment),
    }[role]
    if not suits:
        remedy = "list it under another kind, or store it in another type"
        if is_moment and role != LABEL:
            remedy = f"take parts of it with the option 'dates', as in dates: {{{name}: [hour, weekday, date]}}"
        problem = f"must hold {words} as {'a field of dates' if role == DATES else role}"
        raise BadColumn(name, problem, value=str(stored), remedy=remedy)
    return column


def _check_lengths(name: str, column: pa.Array) -> None:
    is_coded = pa.types.is_dictionary(column.type)
    values = column.dictionary if is_coded else column
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return
    lengths = pc.binary_length(values)
    if (pc.max(lengths).as_py() or 0) > LONGEST_LINE:
        at = pc.index(pc.greater(lengths, LONGEST_LINE), True).as_py()
        row = pc.index(column.indices, at).as_py() if is_coded else at
        problem, remedy = f"must be at most {LONGEST_LINE:,} bytes long", "shorten it, or name another column"
        of_later_rows = row < 0  # a dictionary may have values of these
        raise BadColumn(name, problem, row=None if of_later_rows else row, value=values[at].as_py()[:80], remedy=remedy)


def _whole(name: str, column: pa.Array) -> pa.Array:
    """Floats (pandas stores integers with gaps so) or decimals as int64, exactly; NaN is missing.

    Raises:
        BadColumn: for a fraction, and for a number that its type or int64 cannot hold exactly.
    """
    kind = column.type
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
        column = column.cast(pa.float64())
        row = pc.index(pc.greater_equal(pc.abs(column), EXACT[kind]), True).as_py()
        if row >= 0:
            raise BadColumn(
                name,
                f"must be below {EXACT[kind]:,}, above which {kind} merges whole numbers",
                row=row,
                value=column[row].as_py(),
                remedy="store the column as whole numbers or as text",
            )
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        row = next(row for row, value in enumerate(column.to_pylist()) if value is not None and not _is_int64(value))
        raise BadColumn(
            name,
            "must be a whole number that fits int64",
            row=row,
            value=str(column[row].as_py()),
            remedy="list it under 'numeric', or store it as text",
        ) from error


def _is_int64(value: float | Decimal) -> bool:
    return value == int(value) and -(2**63) <= value < 2**63
