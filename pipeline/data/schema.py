"""What a row is: the one data contract, written by ``encode`` and read by everybody else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

UNKNOWN = 0  # feature id of every value that training rows did not show often enough
PADDING = -1  # fills the unused slots of a multi-valued field; never looked up


@dataclass(frozen=True)
class Field:
    """One column of the log.

    Ids run from 0 to ``cardinality - 1``; id 0 is `UNKNOWN`, the others are ordered by falling training
    frequency with ties by value, so "how frequent" can be read off the id itself.

    Args:
        name: unique within the schema.
        cardinality: number of ids, `UNKNOWN` included.
        width: slots the field takes in a row of ids. More than one makes it a bag: its values fill the
            leading slots, `PADDING` the rest, and their vectors are averaged.
    """

    name: str
    cardinality: int
    width: int = 1

    def __post_init__(self) -> None:
        if self.cardinality < 1 or self.width < 1:
            raise ValueError(
                f"field {self.name!r}: cardinality and width must be at least 1, "
                f"however: {self.cardinality=}, {self.width=}"
            )


@dataclass(frozen=True)
class Schema:
    """The fields of a data set, in the order of their slots.

    A row of ids has S = ``num_slots`` entries; a batch is ids ``(B, S)`` with B rows. S equals the number of
    fields F unless some field is multi-valued.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("a schema needs at least one field")
        names = [field.name for field in self.fields]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"field names must be unique, however these occur twice: {twice}")

    def __len__(self) -> int:
        return len(self.fields)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @cached_property
    def cardinalities(self) -> np.ndarray:
        """(F,) int64: number of ids of each field."""
        return np.array([field.cardinality for field in self.fields], dtype=np.int64)

    @cached_property
    def widths(self) -> np.ndarray:
        """(F,) int64: number of slots of each field."""
        return np.array([field.width for field in self.fields], dtype=np.int64)

    @cached_property
    def first_rows(self) -> np.ndarray:
        """(F,) int64: row of each field's id 0 in a table that holds all fields."""
        return np.cumsum(self.cardinalities) - self.cardinalities

    @property
    def num_rows(self) -> int:
        """V: rows of a table that holds all fields."""
        return int(self.cardinalities.sum())

    @property
    def num_slots(self) -> int:
        return int(self.widths.sum())

    @cached_property
    def slot_fields(self) -> np.ndarray:
        """(S,) int64: the field that each slot belongs to."""
        return np.repeat(np.arange(len(self.fields)), self.widths)

    def subset(self, names: Iterable[str]) -> Schema:
        """The same schema with only the named fields, in this schema's order."""
        wanted = set(names)
        self.check_names(wanted)
        return Schema(tuple(field for field in self.fields if field.name in wanted))

    def slots_of(self, names: Iterable[str]) -> np.ndarray:
        """(s,) int64: positions of the named fields' slots in a row of this schema."""
        wanted = set(names)
        self.check_names(wanted)
        keep = np.array([field.name in wanted for field in self.fields])
        return np.flatnonzero(keep[self.slot_fields])

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse names that are not fields of this schema."""
        foreign = sorted(set(names) - set(self.names))
        if foreign:
            raise ValueError(f"no field {foreign} in the schema; there are {list(self.names)}")

    def to_dict(self) -> dict[str, Any]:
        return {"fields": [asdict(field) for field in self.fields]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Schema:
        return cls(tuple(Field(**field) for field in record["fields"]))

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Read a ``schema.json``; keys other than ``fields`` are left to others.

        Raises:
            ValueError: naming the file, if it is no schema.
        """
        text = Path(path).read_text()
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"is no schema ({type(error).__name__}: {error})"
            raise ValueError(f"{path}: {why}; encode the data again") from error
