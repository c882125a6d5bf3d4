"""The difference between the metrics of two models, with an interval that covers seeds and test rows, or users."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from pipeline.data.split import LEAST_ROWS

LEVEL = 0.95
MOST = 1000  # seeds that an estimate may ask for
MANY = 10**9  # rows; with so many, their variance counts as known
SEEDS_ALONE = "seeds alone"
CELLS = 512  # of a sketch
ROUNDING = 1e-12  # relative size of a standard error that is nothing but rounding
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio


@dataclass(frozen=True)
class Difference:
    """A mean difference over seeds.

    Args:
        mean: over the seeds.
        interval: 95 % confidence interval; None for one seed, too few test rows, or if nothing varies.
        p_value: two-sided, for the hypothesis of no difference; None if there is no interval.
        seeds: number of seeds.
        seed_sd: standard deviation of the difference over the seeds; None for one seed.
        row_se: standard error from the choice of test rows; None if it is unknown.
        rows: number of test rows; None if it is unknown.
        unit: what the metric is a mean over, and `row_se` and ``rows`` are of; "rows", or "users" where the rows of a
            user are not independent.
    """

    mean: float
    interval: tuple[float, float] | None
    p_value: float | None
    seeds: int
    seed_sd: float | None
    row_se: float | None
    rows: int | None = None
    unit: str = "rows"

    @property
    def covers(self) -> str:
        """The sources of variation that the interval covers, or the reason why there is no interval."""
        if self.interval is not None:
            return f"seeds and test {self.unit}" if self.row_se is not None else SEEDS_ALONE
        if self.seeds == 1:
            return "no interval: it takes two seeds or more"
        if self.rows is not None and self.rows < LEAST_ROWS:
            return f"no interval: it takes {LEAST_ROWS} test {self.unit} or more, and there are {self.rows}"
        if self.rows is not None and self.row_se is None:
            return f"no interval: it takes two test {self.unit} of each label or more"
        return "no interval: nothing varies"

    @property
    def share_of_seeds(self) -> float | None:
        """The share of the variance of ``mean`` that comes from the seeds; the rest comes from the test rows. None if
        one of the two is unknown, or nothing varies."""
        if self.seed_sd is None or self.row_se is None:
            return None
        of_seeds, of_rows = self.seed_sd**2 / self.seeds, self.row_se**2
        return of_seeds / (of_seeds + of_rows) if of_seeds + of_rows > 0 else None

    def seeds_for(self, half: float) -> int | None:
        """An estimate of the least number of seeds, on the same test rows, whose interval reaches no further than
        ``half`` from its mean; None if it is above `MOST`, or the variance of the seeds is unknown."""
        if self.seed_sd is None:
            return None
        of_rows = (self.row_se or 0.0) ** 2
        for n in range(2, MOST + 1):
            if _half(self.seed_sd**2 / n, of_rows, n) <= half:
                return n
        return None

    def rows_for(self, half: float) -> float | None:
        """An estimate of how many times the test rows it takes, with the same seeds, for an interval that reaches no
        further than ``half`` from its mean; None if no number suffices, or a variance is unknown."""
        if self.seed_sd is None or self.row_se is None or self.seeds < 2:
            return None
        of_seeds, of_rows = self.seed_sd**2 / self.seeds, self.row_se**2
        if _half(of_seeds, 0.0, self.seeds) > half:
            return None
        low, high = 0.0, 1.0  # the share of the variance over rows that may remain
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if _half(of_seeds, middle * of_rows, self.seeds) <= half else (low, middle)
        return 1 / low if low > 0 else None

    def times_for(self, half: float) -> float | None:
        """An estimate of how many times the seeds and the test rows it takes together, with the quantile of the normal
        distribution, for an interval that reaches no further than ``half`` from its mean; None if nothing varies."""
        variance = (self.seed_sd or 0.0) ** 2 / self.seeds + (self.row_se or 0.0) ** 2
        if not variance > 0 or not half > 0:
            return None
        return float(stats.norm.ppf(0.5 + LEVEL / 2)) ** 2 * variance / half**2

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "covers": self.covers}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Difference:
        """The difference that `to_dict` wrote; other entries of the record are ignored."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__ if name in record})


def difference(
    a: Sequence[float],
    b: Sequence[float],
    row_variance: float | None = None,
    rows: int | None = None,
    unit: str = "rows",
) -> Difference:
    """Mean of a - b over paired seeds, and its uncertainty.

    The variance of the mean is the sum of two parts: s_d**2 / n from the n seeds, where s_d is the standard deviation
    of the paired differences, and ``row_variance`` from the test rows. All seeds share the test rows, so more seeds do
    not reduce the second part. The interval uses the t quantile with the degrees of freedom of Welch and Satterthwaite.

    Both parts contain the interaction of seeds and rows, so the interval is conservative: sqrt(2) times too wide if
    there is only interaction, and hardly too wide if seeds or rows dominate.

    Sources: DeLong, DeLong, Clarke-Pearson 1988, for the variance over rows; Satterthwaite 1946, An Approximate
    Distribution of Estimates of Variance Components.

    Args:
        a, b: the metric of either model for each seed.
        row_variance: variance over rows of the seed-averaged difference, from the function `row_variance` or
            `sketched_variance`; None if nobody computed it, and then the interval covers the seeds alone; NaN if the
            rows do not tell it, and then there is no interval.
        rows: number of test rows, for the degrees of freedom. Below `LEAST_ROWS` there is no interval: it would rest on
            a normal distribution that so few rows do not have, and could even be of width 0.
        unit: see `Difference`.

    Raises:
        ValueError: if there are no seeds, or ``a`` and ``b`` have different numbers of them.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a and b must have the same number of seeds, at least 1, got {len(a)} and {len(b)}")
    differences = np.subtract(a, b)
    n, mean = len(differences), float(differences.mean())
    row_se = None if row_variance is None or math.isnan(row_variance) else float(row_variance) ** 0.5
    if n == 1:
        return Difference(mean, None, None, 1, None, row_se, rows, unit)
    sd = float(differences.std(ddof=1))
    of_seeds, of_rows = sd**2 / n, (row_se or 0.0) ** 2
    variance = of_seeds + of_rows
    too_few = rows is not None and (rows < LEAST_ROWS or row_se is None)
    if too_few or variance <= (ROUNDING * max(np.abs(a).max(), np.abs(b).max())) ** 2:
        return Difference(mean, None, None, n, sd, row_se, rows, unit)
    freedom = _freedom(of_seeds, of_rows, n, rows or 2)
    half = _half(of_seeds, of_rows, n, rows or 2)
    p_value = float(2 * stats.t.sf(abs(mean) / variance**0.5, freedom))
    return Difference(mean, (mean - half, mean + half), p_value, n, sd, row_se, rows, unit)


def _freedom(of_seeds: float, of_rows: float, n: int, rows: int) -> float:
    """Degrees of freedom (Satterthwaite 1946) of a sum of two variances, of n seeds and of the rows."""
    return (of_seeds + of_rows) ** 2 / (of_seeds**2 / (n - 1) + of_rows**2 / max(1, rows - 1))


def _half(of_seeds: float, of_rows: float, n: int, rows: int = MANY) -> float:
    """Half the width of the interval; 0 if nothing varies."""
    if not of_seeds + of_rows > 0:
        return 0.0
    quantile = stats.t.ppf(0.5 + LEVEL / 2, _freedom(of_seeds, of_rows, n, rows))
    return float(quantile) * (of_seeds + of_rows) ** 0.5


def row_variance(influence: np.ndarray) -> float:
    """Variance of a metric over the rows, from their influences (n,); see `pipeline.training.task.Contract`."""
    return float(np.square(influence).sum()) / len(influence) ** 2


def sketch(influence: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """A sketch (cells,) float32 of influences (n,), divided by n, that preserves their sum of squares.

    Every influence is added to a random cell with a random sign; cell and sign depend only on the number of the row.
    The sketch is linear, so sketches of models on the same rows can be averaged and subtracted like the influences. The
    sum of squares of the result is `row_variance` up to a relative error of about sqrt(2 / cells), 6 % for 512.

    Sources: Charikar, Chen, Farach-Colton 2004, Finding Frequent Items in Data Streams; Alon, Matias, Szegedy 1999.

    Args:
        influence: (n,) see `pipeline.training.task.Contract`.
        cells: size of the sketch.
    """
    hashed = np.arange(1, len(influence) + 1, dtype=np.uint64) * _MIX
    hashed ^= hashed >> np.uint64(29)
    hashed *= np.uint64(0xBF58476D1CE4E5B9)
    hashed ^= hashed >> np.uint64(32)
    sign = np.where(hashed & np.uint64(1), 1.0, -1.0)
    cell = ((hashed >> np.uint64(1)) % np.uint64(cells)).astype(np.int64)
    return (np.bincount(cell, weights=sign * influence, minlength=cells) / len(influence)).astype(np.float32)


def sketched_variance(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """The `row_variance` of mean(a) - mean(b), estimated from sketches.

    Args:
        a, b: the `sketch` of each model; all models are tested on the same rows.
    """
    return float(np.square(np.mean(a, axis=0, dtype=np.float64) - np.mean(b, axis=0, dtype=np.float64)).sum())


def encoded(sketch: np.ndarray) -> str:
    """A `sketch` as text for result files: base64 of little-endian float16 numbers, 2.7 characters each."""
    return base64.b64encode(sketch.astype("<f2").tobytes()).decode()


def decoded(text: str) -> np.ndarray:
    """(cells,) float32: the `sketch` that `encoded` wrote.

    Raises:
        ValueError: if the text is not base64 of float16 numbers.
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float32)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a sketch must be base64 of float16 numbers, got {text[:20]!r}... ({error})") from error


def spread(values: Sequence[float]) -> dict[str, Any]:
    """``mean``, ``sd`` and ``values`` of a figure over seeds; the standard deviation is None for a single seed."""
    array = np.asarray(values, dtype=np.float64)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return {"mean": float(array.mean()), "sd": sd, "values": array.tolist()}
