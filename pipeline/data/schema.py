"""The schema of a data set: its fields, written by ``encode`` and read by all later stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.workflow.outputs import broken, read_json
from pipeline.workflow.validation import repeated

UNKNOWN = 0  # feature id of all values that are too rare in training rows to have their own
MOST_IDS = 2**31 - 1  # of all fields; ids are int32
MOST_SLOTS = 2**17  # of all fields
ROLES = ("", "user", "item", "event")
PADDING = -1  # fills the unused slots of a multi-valued field; never looked up


@dataclass(frozen=True)
class Field:
    """One column of the log.

    Ids run from 0 to ``cardinality - 1``. Id 0 is `UNKNOWN`. ``encode`` numbers the others by falling frequency in
    training rows, and ties by value.

    Args:
        name: unique within the schema.
        cardinality: number of ids, `UNKNOWN` included.
        width: slots of the field in a row of ids. A field with more than one slot is a bag: its values fill the first
            slots, `PADDING` fills the rest, and the vectors of the values are averaged.
        role: of interactions, whom the field describes: "user", "item", or "event", one event of a history; see
            `pipeline.data.interactions`. Empty for the fields of a log with labels.

    Raises:
        ValueError: if the name is no text, or ``cardinality`` or ``width`` no whole number of at least 1.
    """

    name: str
    cardinality: int
    width: int = 1
    role: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"the name of a field must be a text of at least one character, got {self.name!r}")
        if self.role not in ROLES:
            raise ValueError(f"field {self.name!r}: role must be one of {list(ROLES)}, got {self.role!r}")
        if any(type(number) is not int or number < 1 for number in (self.cardinality, self.width)):
            raise ValueError(
                f"field {self.name!r}: cardinality and width must be whole numbers of at least 1, "
                f"got {self.cardinality!r} and {self.width!r}"
            )


@dataclass(frozen=True)
class Schema:
    """The fields of a data set.

    A row of ids has S = `num_slots` entries; a batch of B rows is an array of ids (B, S). S equals the number of fields
    F unless some field is a bag.

    Args:
        fields: in the order of their slots.

    Raises:
        ValueError: if there is no field, a name occurs twice, or there are too many ids or slots.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("a schema must have at least one field")
        names = [field.name for field in self.fields]
        twice = repeated(names)
        if twice:
            raise ValueError(f"field names must be unique, got {twice} twice")
        ids, slots = (sum(getattr(field, of) for field in self.fields) for of in ("cardinality", "width"))
        if ids > MOST_IDS or slots > MOST_SLOTS:
            raise ValueError(
                f"a schema must have at most {MOST_IDS:,} ids and {MOST_SLOTS:,} slots, got {ids:,} and {slots:,}"
            )

    def __len__(self) -> int:
        return len(self.fields)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the fields, in order."""
        return tuple(field.name for field in self.fields)

    @cached_property
    def cardinalities(self) -> np.ndarray:
        """The number of ids of each field, (F,) int64."""
        return np.array([field.cardinality for field in self.fields], dtype=np.int64)

    @cached_property
    def widths(self) -> np.ndarray:
        """The number of slots of each field, (F,) int64."""
        return np.array([field.width for field in self.fields], dtype=np.int64)

    @cached_property
    def first_rows(self) -> np.ndarray:
        """The row of each field's id 0 in one table of all fields, (F,) int64."""
        return np.cumsum(self.cardinalities) - self.cardinalities

    @property
    def num_rows(self) -> int:
        """V, the number of rows of one table of all fields."""
        return int(self.cardinalities.sum())

    @property
    def num_slots(self) -> int:
        """S, the number of slots of all fields."""
        return int(self.widths.sum())

    @cached_property
    def slot_fields(self) -> np.ndarray:
        """The number of the field of each slot, (S,) int64."""
        return np.repeat(np.arange(len(self.fields)), self.widths)

    def subset(self, names: Iterable[str]) -> Schema:
        """A schema of only the named fields, in the order of this schema."""
        wanted = set(names)
        self.check_names(wanted)
        return Schema(tuple(field for field in self.fields if field.name in wanted))

    def of_role(self, role: str) -> Schema | None:
        """A schema of only the fields with this role; None if there are none."""
        fields = tuple(field for field in self.fields if field.role == role)
        return Schema(fields) if fields else None

    def slots_of(self, names: Iterable[str]) -> np.ndarray:
        """The positions of the slots of the named fields in a row of ids, (s,) int64."""
        wanted = set(names)
        self.check_names(wanted)
        keep = np.array([field.name in wanted for field in self.fields])
        return np.flatnonzero(keep[self.slot_fields])

    def check_names(self, names: Iterable[str]) -> None:
        """Check that all names are fields of this schema.

        Raises:
            ValueError: naming the unknown names and the fields.
        """
        foreign = sorted(set(names) - set(self.names))
        if foreign:
            raise ValueError(f"no field {foreign} in the schema; there are {list(self.names)}")

    def to_dict(self) -> dict[str, Any]:
        """The schema as JSON values."""
        return {"fields": [{k: v for k, v in asdict(field).items() if k != "role" or v} for field in self.fields]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Schema:
        """The schema that `to_dict` wrote."""
        return cls(tuple(Field(**field) for field in record["fields"]))

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Read the ``fields`` of a ``schema.json``.

        Raises:
            ValueError: naming the file, if it is not a schema.
            FileNotFoundError: if the file does not exist.
        """
        return cls.of(read_json(path), path)

    @classmethod
    def of(cls, record: Any, path: str | Path) -> Schema:
        """The schema in the contents of a file.

        Raises:
            ValueError: naming the file, if there is none.
        """
        try:
            return cls.from_dict(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise broken(path, f"is not a schema ({type(error).__name__}: {error})") from error
