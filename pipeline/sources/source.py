"""What a data set file gives: a `Source`. And the raw table that ``ingest`` makes of it.

**The contract of a file in** ``pipeline/datasets``: one function ::

    def read(path: Path, *, option=default, ...) -> Source

whose keyword-only parameters are what ``dataset.options`` in params.yaml may hold. It reads local files, in
batches, and raises `BadData` on bad input and `NotFound` if its files are not at ``path``. If the publisher
offers a download, the module says so with ``DOWNLOAD = {"url": ..., "md5": ...}``; it is fetched when `read`
raises `NotFound`, and `read` is then called with the path of what was fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

CATEGORICAL, NUMERIC, BAG = "categorical", "numeric", "bag"
KINDS = (CATEGORICAL, NUMERIC, BAG)
LABEL, TIME, ORACLE = "label", "time", "oracle"  # columns that are no fields


class BadData(ValueError):
    """The data are not what they should be: says what, where, the value found, and the remedy."""

    def __init__(
        self, problem: str, *, file: object, line: int | None = None, value: object = None, remedy: str
    ) -> None:
        place = f"{file}, line {line}" if line is not None else str(file)
        shown = "" if value is None else f", found {_shortened(repr(value))}"
        super().__init__(f"{place}: {problem}{shown}; {remedy}")


class NotFound(FileNotFoundError):
    """The files of a data set are not where they were looked for."""


def _shortened(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass(frozen=True)
class Source:
    """A log of events, not yet read.

    Args:
        fields: kind of every field, in order. The kinds and their column types:
            ``categorical`` - strings or integers;
            ``numeric`` - integers or floats, NaN counts as null;
            ``bag`` - lists of strings.
            A null is a missing value, in all of them.
        batches: record batches of any size with the fields' columns and

            * ``label``: uint8, 0 or 1, no nulls;
            * ``time``, if rows have one: int64, larger is later, no nulls; orders the rows, is no field;
            * ``oracle``, if the data are planted: float64, the true probability of label 1.
        origin: what error messages call the data, e.g. the path of the file.
        defaults: settings of ``encode`` that suit these data: ``min_count``, ``max_bag``.
        facts: anything worth keeping in raw.json, e.g. the planted ranks; JSON types only. Read after the last
            batch, so a source may fill it while it generates.
    """

    fields: Mapping[str, str]
    batches: Iterable[pa.RecordBatch]
    origin: str
    defaults: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.fields:
            raise BadData("there is no field", file=self.origin, remedy="name at least one")
        for name, kind in self.fields.items():
            if kind not in KINDS:
                raise BadData(f"field {name!r}: no kind {kind!r}", file=self.origin, remedy=f"there are {KINDS}")
            if name in (LABEL, TIME, ORACLE):
                raise BadData(f"a field is named {name!r}, which is taken", file=self.origin, remedy="rename it")
