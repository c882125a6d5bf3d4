"""What a text in a table looks like: a number, a date, a time."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

WHOLE = r"^-?[0-9]+$"
NUMBER = r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
DECIMAL_COMMA = r"^-?([0-9]{1,3}(\.[0-9]{3})+|[0-9]+),[0-9]+$"
ISO_DATE = "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
ISO_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?$"
ISO_ZONED = ISO_TIME.removesuffix("$") + "(Z|[-+][0-9]{2}(:?[0-9]{2})?)$"
OTHER_DATE = r"^([0-9]{1,2}[./-][0-9]{1,2}[./-]([0-9]{2}|[0-9]{4})|[0-9]{4}[./][0-9]{1,2}[./][0-9]{1,2})([T ].*)?$"
DIGITS_DATE = r"^(19|20)?[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])([01][0-9]|2[0-3])?$"  # 20201231, 20123123
TYPED = "|".join((NUMBER, ISO_DATE, ISO_TIME, ISO_ZONED, OTHER_DATE))


def fits(texts: pa.Array | pa.ChunkedArray, pattern: str) -> pa.Array | pa.ChunkedArray:
    """(n,) whether each text matches a pattern of this module."""
    return pc.match_substring_regex(texts, pattern)


def is_typed(text: str) -> bool:
    """Whether a text is a number, a date or a time."""
    return re.match(TYPED, text) is not None
