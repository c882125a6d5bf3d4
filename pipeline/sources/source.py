"""The contract of data sets: each returns a `Source`, a log of events that is not read yet.

**A data set is one file** in ``pipeline/datasets``, with one function ::

    def read(path: Path, *, option: type = default, ...) -> Source

Its keyword-only parameters are the options that ``dataset.options`` in params.yaml may set, and their annotations
define the allowed values; both are checked before `read` runs. `read` reads local files, batch by batch. It raises
`BadData` on bad input, and `NotFound` if the files are not at ``path``. If the publisher offers a download, the module
names it in ``DOWNLOAD = {"url": ..., "md5": ...}``. When `read` raises `NotFound`, the file is downloaded, and `read`
is called again with its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

CATEGORICAL, NUMERIC, BAG = "categorical", "numeric", "bag"
KINDS = (CATEGORICAL, NUMERIC, BAG)
LABEL, TIME, ORACLE = "label", "time", "oracle"  # columns that are not fields
EVENT, BASKET, TEST = "event", "basket", "test"  # further ones of interactions
USER, ITEM = "user", "item"  # roles of the fields of interactions


class BadData(ValueError):
    """Bad input: the message names the place, the problem, the value and the remedy.

    Args:
        problem: e.g. "label must be 0 or 1".
        file: where it is; its ``str`` is shown.
        line: of the file, from 1; None if the problem is not in one line.
        value: the wrong value; None if there is none to show.
        remedy: what the user can do.
    """

    def __init__(
        self, problem: str, *, file: object, line: int | None = None, value: object = None, remedy: str
    ) -> None:
        place = f"{file}, line {line}" if line is not None else str(file)
        shown = "" if value is None else f", got {_shortened(repr(value))}"
        super().__init__(f"{place}: {problem}{shown}; {remedy}")


class BadColumn(ValueError):
    """A column, or one value of it, that cannot be read. The reader, which knows the file, turns it into `BadData`.

    Args:
        column: its name.
        problem: e.g. "must be a whole number".
        remedy: what the user can do.
        row: of the value, from 0, in the array that was being read; None if the whole column is wrong.
        value: the wrong value, or type.
    """

    def __init__(self, column: str, problem: str, *, remedy: str, row: int | None = None, value: object = None) -> None:
        super().__init__(f"column {column!r} {problem}")
        self.column, self.problem, self.remedy, self.row, self.value = column, problem, remedy, row, value


class NotFound(FileNotFoundError):
    """The files of a data set are not at their path."""


def _shortened(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass(frozen=True)
class Interacting:
    """How the rows of a log are interactions of users and items, instead of events with a label.

    Args:
        roles: "user" or "item" for every field: which of the two it describes.
        user: the field that identifies a user: categorical, of role "user".
        item: the field that identifies an item: categorical, of role "item".
        targets: types of events that a model may be asked to predict, e.g. purchases; events of other types, e.g.
            returns, only stand in histories. None: events of all types are targets.
    """

    roles: Mapping[str, str]
    user: str
    item: str
    targets: Sequence[str] | None = None

    def check(self, fields: Mapping[str, str], origin: str) -> None:
        """Raise BadData if the roles do not suit the fields (name -> kind) of the data named ``origin``."""
        for name in sorted({*fields, *self.roles}):
            if name not in fields or self.roles.get(name) not in (USER, ITEM):
                problem = "is no field" if name not in fields else f"must have the role {USER!r} or {ITEM!r}"
                raise BadData(
                    f"{name!r} {problem}", file=origin, value=self.roles.get(name), remedy="correct the roles"
                )
        for role, name in ((USER, self.user), (ITEM, self.item)):
            if self.roles.get(name) != role or fields[name] != CATEGORICAL:
                raise BadData(
                    f"the field that identifies the {role} must be a categorical field of role {role!r}",
                    file=origin,
                    value=name,
                    remedy="correct it",
                )
        if self.targets is not None and not self.targets:
            raise BadData("targets must name at least one type of events", file=origin, value=[], remedy="name one")
        for name in (EVENT, BASKET, TEST):
            if name in fields:
                raise BadData(f"no field of interactions may have the name {name!r}", file=origin, remedy="rename it")


@dataclass(frozen=True)
class Source:
    """A log of events that is not read yet.

    Args:
        fields: kind of every field, in order. The kinds and their column types:

            * ``categorical``: strings or integers;
            * ``numeric``: integers or floats, where NaN counts as null;
            * ``bag``: lists of strings.

            A null is a missing value in all of them.
        batches: record batches of any size with the fields' columns and

            * ``label``: uint8, only 0 and 1; or float64, any finite number in the range of float32. No nulls;
            * ``time``, if rows have one: int64, larger is later, no nulls. It orders the rows and is not a field;
            * ``oracle``, if the data are planted: float64, the true expected label; for labels of 0 and 1, this is the
              probability of label 1.

            With ``interactions``, there are no labels and no oracle, the fields that identify user and item have no
            nulls and no empty strings, and there may be

            * ``event``: strings, the type of the event; no nulls;
            * ``basket``: strings, e.g. the invoice to which the row belongs; no nulls, and empty only in rows that are
              no targets;
            * ``test``: uint8, 1 for the rows that the publisher of a benchmark gives as test, else 0; no nulls.
        origin: name of the data in error messages, e.g. the path of the file.
        defaults: settings of ``encode`` that suit these data: ``min_count``, ``max_bag``, ``history``.
        facts: other facts to keep in raw.json, e.g. the planted ranks; JSON types only. They are read after the last
            batch, so a source may add facts while its batches are read.
        notes: sentences about what the reader changed, left out or decided, for raw.json and for the user. They are
            read after the last batch, like the facts.
        interactions: what the fields describe, if the rows are interactions of users and items; None for events with
            a label.

    Raises:
        BadData: if there is no field, if a field's name or kind is not allowed, or if roles do not suit the fields.
    """

    fields: Mapping[str, str]
    batches: Iterable[pa.RecordBatch]
    origin: str
    defaults: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    interactions: Interacting | None = None

    def __post_init__(self) -> None:
        if not self.fields:
            raise BadData("there is no field", file=self.origin, remedy="name at least one")
        for name, kind in self.fields.items():
            if kind not in KINDS:
                raise BadData(
                    f"kind of field {name!r} must be one of {', '.join(KINDS)}",
                    file=self.origin,
                    value=kind,
                    remedy="correct it",
                )
            if name in (LABEL, TIME, ORACLE):
                raise BadData(f"no field may have the name {name!r}", file=self.origin, remedy="rename it")
        if self.interactions is not None:
            self.interactions.check(self.fields, self.origin)
