"""What a column is good for: a field of some kind, a date, or nothing.

Each rule looks at one column and answers, or leaves it to the next rule. The first answer counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.describing.column import Column
from pipeline.describing.values import (
    DECIMAL_COMMA,
    DIGITS_DATE,
    ISO_DATE,
    ISO_TIME,
    ISO_ZONED,
    NUMBER,
    OTHER_DATE,
    WHOLE,
    fits,
)
from pipeline.sources.source import BAG, CATEGORICAL, LABEL, NUMERIC, ORACLE, TIME

DATE, LEFT_OUT = "date", "left out"

NEARLY_ALL = 0.98  # share of missing values above which a column is left out
ONCE = 0.95  # share of values that occur once above which nothing can be learned from a column of texts
FEW, ROWS_EACH = 100, 20  # at most so many whole numbers, in so many rows each, are categories
VERY_FEW, SPARSE = 20, 0.1  # the same for numbers that are a small share of their range, as amounts are
SMALL_PART = 0.1  # the median of amounts is often in the lowest part of their range; that of ids is not
DENSE = 0.5  # share of the whole numbers of a range that occur, above which they look like ids
LONG = 8  # digits of long ids
SEPARATORS = ("|", ";", ",", " ")
BAG_ROWS, PIECES_PER_VALUE = 0.1, 0.5  # least share of rows with several pieces; most different pieces per value
WORDS, WORDS_BAG = 5, 0.1  # mean words of free text; most different words per value of a bag separated by spaces
FEW_ODD = 3  # at most so many texts among numbers may mean a missing value
UNIX = (788_918_400, 2_208_988_800)  # seconds from 1995 to 2040


def words(name: str) -> set[str]:
    """The words of a name in lower case: ``userID`` and ``user_id`` have the words user and id."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


CALENDAR = words("year month day hour minute week weekday dow quarter")
AMOUNTS = words(
    "age amount balance bid budget capital cnt cost count counts days delay distance duration gain height income "
    "length loss num price qty quantity rank revenue salary score size spend sum time total views visits weight width"
)
ENTITIES = words(
    "ad advertiser app banner brand browser campaign category channel city class code country cust customer device "
    "flight genre group host invoice ip item key movie os page phone product publisher region segment seller session "
    "shop site sku state store track type uid user zip"
)


@dataclass(frozen=True)
class Use:
    """What a column is used as.

    Args:
        kind: CATEGORICAL, NUMERIC, BAG, DATE or LEFT_OUT.
        why: what was seen, in a few words.
        separator: between the values of a bag that is stored as text.
        parts: of a date that can be fields of their own.
        orders: whether the values of a date can order the rows as they are.
    """

    kind: str
    why: str
    separator: str | None = None
    parts: tuple[str, ...] = ()
    orders: bool = False


def use_of(column: Column) -> Use:
    """The answer of the first rule that has one."""
    return next(use for rule in RULES if (use := rule(column)) is not None)


# --- the rules, in their order


def _badly_named(column: Column) -> Use | None:
    if not column.name:
        return Use(LEFT_OUT, "has no name; such a column often numbers the rows")
    if column.name in (LABEL, TIME, ORACLE):
        return Use(LEFT_OUT, f"a field cannot have the name {column.name!r}; rename it to use it")
    return None


def _of_other_type(column: Column) -> Use | None:
    return None if column.is_readable else Use(LEFT_OUT, f"has the type {column.values.type}, which is not read")


def _infinite(column: Column) -> Use | None:
    if column.is_number and np.isinf(column.numbers).any():
        return Use(LEFT_OUT, "has infinite numbers")
    return None


def _missing(column: Column) -> Use | None:
    if column.missing >= NEARLY_ALL:
        return Use(LEFT_OUT, "has no values" if column.missing == 1 else f"{column.missing:.1%} are missing")
    return None


def _constant(column: Column) -> Use | None:
    return Use(LEFT_OUT, "has only one value") if column.distinct == 1 and not column.missing else None


def _list(column: Column) -> Use | None:
    return Use(BAG, "lists") if column.is_list else None


def _date(column: Column) -> Use | None:
    kind = column.values.type
    if pa.types.is_time(kind):
        return Use(DATE, str(kind), parts=("hour",))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        parts = ("weekday",) if pa.types.is_date(kind) else ("hour", "weekday")
        return Use(DATE, str(kind), parts=parts, orders=True)
    if not column.is_text:
        return None
    if column.share(ISO_ZONED) == 1 or column.share(f"{ISO_DATE}|{ISO_TIME}") == 1:
        parts = ("weekday",) if column.share(ISO_DATE) == 1 else ("hour", "weekday")
        return Use(DATE, "dates in ISO 8601", parts=parts, orders=True)
    if column.share(f"{OTHER_DATE}|{ISO_DATE}|{ISO_TIME}|{ISO_ZONED}") >= ONCE:
        return Use(LEFT_OUT, "has dates in a form that is not read; write them as 2020-12-31 or 2020-12-31 23:59")
    return None


def _number_of_date(column: Column) -> Use | None:
    if not column.is_whole or column.distinct <= FEW:
        return None
    if column.share(DIGITS_DATE) == 1:
        return Use(DATE, "dates written as digits, such as 20201231", orders=True)
    for unit, factor, parts in (("seconds", 1, ("hour", "weekday")), ("milliseconds", 1000, ())):
        if factor * UNIX[0] <= column.low and column.high <= factor * UNIX[1]:
            return Use(DATE, f"Unix {unit}, by their range", parts=parts, orders=True)
    return None


def _row_id(column: Column) -> Use | None:
    if column.known < ROWS_EACH or (column.is_number and not column.is_whole):
        return None
    if column.distinct == column.known and (not column.is_whole or _is_id(column)):
        return Use(LEFT_OUT, "is different in every row")
    if column.whole and column.once >= ONCE and not column.is_number:
        return Use(LEFT_OUT, f"{column.once:.0%} of its values occur once, so they say nothing about other rows")
    return None


def _is_id(column: Column) -> bool:
    """Whether different whole numbers look like ids rather than amounts."""
    return "id" in words(column.name) or column.ordered == 1 or column.density >= DENSE


def _bag(column: Column) -> Use | None:
    separator = bag_separator(column) if column.is_text and not column.is_number else None
    if separator is None:
        return None
    return Use(BAG, f"several values separated by {separator!r}", separator=separator)


def bag_separator(column: Column) -> str | None:
    """The separator in texts that hold several values each; None if they do not.

    Texts are bags if a good part of them has several pieces, their number differs from text to text, and far fewer
    pieces than texts are different from each other.
    """
    for separator in SEPARATORS:
        pieces = pc.split_pattern(column.texts, separator)
        sizes = pc.list_value_length(pieces).to_numpy()
        several = column.weights[sizes > 1].sum() / max(1, column.known)
        different = pc.count_distinct(pc.utf8_trim_whitespace(pc.list_flatten(pieces))).as_py()
        most = (WORDS_BAG if separator == " " else PIECES_PER_VALUE) * column.distinct
        if several >= BAG_ROWS and len(np.unique(sizes)) > 1 and different <= most:
            return separator
    return None


def _fractions(column: Column) -> Use | None:
    return Use(NUMERIC, "numbers with fractions") if column.is_number and not column.is_whole else None


def _named_code(column: Column) -> Use | None:
    named = words(column.name) & {"id", *CALENDAR}
    if column.has_codes:
        return Use(CATEGORICAL, "whole numbers, some with leading zeros, as codes have")
    return Use(CATEGORICAL, f"whole numbers, named {min(named)}") if column.is_whole and named else None


def _few_numbers(column: Column) -> Use | None:
    if not column.is_whole or column.known < ROWS_EACH * column.distinct:
        return None
    few = column.distinct <= (FEW if column.density >= SPARSE else VERY_FEW)
    return Use(CATEGORICAL, "few different whole numbers") if few else None


def _negative(column: Column) -> Use | None:
    return Use(NUMERIC, "whole numbers, some negative") if column.is_whole and column.low < -1 else None


def _named_number(column: Column) -> Use | None:
    for kind, names in ((NUMERIC, AMOUNTS), (CATEGORICAL, ENTITIES)):
        named = words(column.name) & names
        if column.is_whole and named:
            return Use(kind, f"whole numbers, named {min(named)}")
    return None


def _numbers_like_ids(column: Column) -> Use | None:
    if not column.is_whole:
        return None
    if column.low >= 10 ** (LONG - 1) and len(str(int(column.low))) == len(str(int(column.high))):
        return Use(CATEGORICAL, "long whole numbers of the same length, as ids have")
    median = np.median(np.repeat(column.numbers, column.weights))
    if column.density >= DENSE and median - column.low >= SMALL_PART * (column.high - column.low):
        return Use(CATEGORICAL, f"most whole numbers from {column.low:,.0f} to {column.high:,.0f} occur, as with ids")
    return None


def _whole_numbers(column: Column) -> Use | None:
    return Use(NUMERIC, "many different whole numbers") if column.is_whole else None


def _decimal_comma(column: Column) -> Use | None:
    if column.is_text and column.share(DECIMAL_COMMA) > 0 and column.share(f"{DECIMAL_COMMA}|{WHOLE}") == 1:
        return Use(LEFT_OUT, "has numbers with a decimal comma, which are not read; write 12.5, not 12,5")
    return None


def _free_text(column: Column) -> Use | None:
    if not column.is_text or column.distinct <= column.known / 2:
        return None
    spaces = pc.count_substring(column.texts, " ").to_numpy()
    mean = float(np.average(spaces, weights=column.weights)) + 1
    return Use(LEFT_OUT, f"has free text, {mean:.0f} words on average") if mean >= WORDS else None


def _category(column: Column) -> Use:
    odd = column.texts.filter(pc.invert(fits(column.texts, NUMBER))).to_pylist()
    if len(odd) <= FEW_ODD and len(odd) < column.distinct / 2:
        return Use(CATEGORICAL, f"numbers, and the texts {', '.join(odd)}; if these mean missing, list them so")
    return Use(CATEGORICAL, "text" if column.is_text else str(column.values.type))


RULES: tuple[Callable[[Column], Use | None], ...] = (
    _badly_named,
    _of_other_type,
    _infinite,
    _missing,
    _constant,
    _list,
    _date,
    _number_of_date,
    _row_id,
    _decimal_comma,
    _bag,
    _fractions,
    _named_code,
    _few_numbers,
    _negative,
    _named_number,
    _numbers_like_ids,
    _whole_numbers,
    _free_text,
    _category,
)
