"""A column of a table, and the facts by which its use is decided."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.describing.values import NUMBER, WHOLE, fits

EXAMPLES, EXAMPLE_LENGTH = 3, 24


@dataclass(frozen=True, eq=False)
class Column:
    """Values of a column in the rows that were read.

    Args:
        name: in the file.
        values: (n,) as they are stored, null where missing.
        whole: whether these are all rows of the table. If not, values that occur once here may occur again elsewhere.
    """

    name: str
    values: pa.Array
    whole: bool = True

    @cached_property
    def counts(self) -> pa.StructArray:
        """The different values, with the fields ``values`` and ``counts``; the most frequent come first.

        Those of lists are the values within them. A type that is not read has none.
        """
        known = self.values.drop_null() if self.is_readable else pa.array([], pa.string())
        if self.is_list:
            known = pc.list_flatten(known).drop_null()
        counted = pc.value_counts(known)
        return counted.take(pc.array_sort_indices(counted.field("counts"), order="descending"))

    @cached_property
    def texts(self) -> pa.Array:
        """(v,) the different values as texts, the most frequent first."""
        return self.counts.field("values").cast(pa.string())

    @cached_property
    def weights(self) -> np.ndarray:
        """(v,) how often each of the different values occurs."""
        weights: np.ndarray = self.counts.field("counts").to_numpy()
        return weights

    @property
    def distinct(self) -> int:
        return len(self.counts)

    @cached_property
    def known(self) -> int:
        """Number of values that are not missing."""
        return int(self.weights.sum())

    @property
    def missing(self) -> float:
        """The share of missing values."""
        return self.values.null_count / max(1, len(self.values))

    @cached_property
    def once(self) -> float:
        """The share of known values that occur only once."""
        return float(np.count_nonzero(self.weights == 1) / max(1, self.known))

    def share(self, pattern: str) -> float:
        """The share of known values whose text fits a pattern of `pipeline.describing.values`."""
        flags = fits(self.texts, pattern).to_numpy(zero_copy_only=False)
        return float(self.weights[flags].sum() / max(1, self.known))

    @cached_property
    def is_number(self) -> bool:
        """Whether all known values are numbers."""
        if self._has_numbers:
            return True
        return self.is_text and self.known > 0 and self.share(NUMBER) == 1

    @property
    def is_readable(self) -> bool:
        """Whether the data set ``table`` reads columns of this type."""
        kind = self.values.type
        others = (pa.types.is_boolean, pa.types.is_timestamp, pa.types.is_date, pa.types.is_time, pa.types.is_null)
        return self.is_text or self.is_list or self._has_numbers or any(is_of(kind) for is_of in others)

    @property
    def _has_numbers(self) -> bool:
        kind = self.values.type
        half = pa.types.is_float16(kind)  # which pyarrow does not count
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)) and not half

    @property
    def is_list(self) -> bool:
        """Whether the values are lists of plain values."""
        kind = self.values.type
        return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not pa.types.is_nested(kind.value_type)

    @property
    def is_text(self) -> bool:
        """Whether the values are stored as text."""
        return bool(pa.types.is_string(self.values.type))

    @cached_property
    def numbers(self) -> np.ndarray:
        """(v,) float64, the different values of a column of numbers, the most frequent first."""
        values = self.counts.field("values")
        numbers: np.ndarray = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return numbers

    @cached_property
    def low(self) -> float:
        """The smallest number."""
        return float(self.numbers.min())

    @cached_property
    def high(self) -> float:
        """The largest number."""
        return float(self.numbers.max())

    @property
    def density(self) -> float:
        """The share of the whole numbers from ``low`` to ``high`` that occur."""
        return self.distinct / (self.high - self.low + 1)

    @cached_property
    def is_whole(self) -> bool:
        """Whether all known values are whole numbers, also as 17850.0."""
        return self.is_number and bool(np.all(self.numbers == np.floor(self.numbers)))

    @cached_property
    def has_codes(self) -> bool:
        """Whether some values are whole numbers with leading zeros, which are not amounts."""
        return self.is_text and self.share(r"^0[0-9]") > 0 and self.share(WHOLE) == 1

    @cached_property
    def ordered(self) -> float:
        """The share of rows that are not smaller than the row before; for columns of numbers or of dates."""
        values = self.values.drop_null()
        if self.is_number:
            values = pc.cast(values, pa.float64(), safe=False)
        steps = pc.greater_equal(values[1:], values[:-1])
        return float(pc.mean(steps).as_py() or 0.0)

    @property
    def examples(self) -> str:
        """Frequent values, shortened, on one line."""
        shown = [one_line(str(text)) for text in self.texts[:EXAMPLES].to_pylist()]
        return ", ".join(shown)


def one_line(text: str, length: int = EXAMPLE_LENGTH) -> str:
    """A text without line ends and other control characters, shortened."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= length else plain[: length - 3] + "..."
