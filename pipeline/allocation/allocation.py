"""The allocation: one dimension per field, and all other data that its method needs to build the embedding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.allocation.arrays import decoded, encoded, most_bytes
from pipeline.data.schema import Schema
from pipeline.workflow.outputs import regular, write_text
from pipeline.workflow.validation import repeated

KEYS = ("method", "dims", "settings", "arrays")


@dataclass(frozen=True, eq=False)
class Allocation:
    """The dimension of each field, and the method that builds the embedding.

    Args:
        method: name of the method that builds the embedding.
        dims: dimension of each field, by name; 0 drops the field. At least one field is kept.
        settings: further JSON values for the method.
        arrays: data for every row or cell of the tables of the kept fields, e.g. a mask.

    Raises:
        ValueError: if a value is not of this form, or no field is kept.
    """

    method: str
    dims: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not self.method:
            raise ValueError(f"method must be the name of a method, got {self.method!r}")
        for key, value in (("dims", self.dims), ("settings", self.settings)):
            if not isinstance(value, dict):
                raise ValueError(f"{key} must map names to values, got {value!r}")
        wrong = {name: d for name, d in self.dims.items() if type(d) is not int or d < 0}
        if wrong:
            raise ValueError(f"dims must be whole numbers of at least 0 (0 drops the field), got {wrong}")
        if not any(self.dims.values()):
            raise ValueError("dims must keep at least one field, but all are 0; give at least one field a dim above 0")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allocation) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.digest())

    def digest(self) -> str:
        """A hash of the contents; equal for equal allocations."""
        return hashlib.sha256(json.dumps(self.to_dict(), allow_nan=False).encode()).hexdigest()

    def check(self, schema: Schema) -> None:
        """Check that the allocation names exactly the fields of a schema.

        Raises:
            ValueError: naming unknown and missing fields.
        """
        foreign = sorted(set(self.dims) - set(schema.names))
        missing = sorted(set(schema.names) - set(self.dims))
        wrong = []
        if foreign:
            wrong.append(f"dims are given for {foreign}, which the schema does not have")
        if missing:
            wrong.append(f"no dim is given for {missing} (0 drops a field)")
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}; the schema's fields are {list(schema.names)}")

    @property
    def common_dim(self) -> int:
        """The common dimension of all fields, which methods need whose fields share numbers.

        Raises:
            ValueError: if there are several.
        """
        dims = set(self.dims.values())
        if len(dims) > 1:
            raise ValueError(f"{self.method}: all fields must have the same dimension, got {self.dims}")
        return dims.pop()

    def kept(self) -> tuple[str, ...]:
        """Names of the fields that are not dropped."""
        return tuple(name for name, d in self.dims.items() if d)

    def of_kept(self) -> Allocation:
        """The same allocation without the dropped fields."""
        return replace(self, dims={name: self.dims[name] for name in self.kept()})

    def to_dict(self) -> dict[str, Any]:
        """The allocation as JSON values; equal allocations have their keys in the same order."""
        settings = json.loads(json.dumps(self.settings, sort_keys=True, allow_nan=False))
        record = {"method": self.method, "dims": dict(sorted(self.dims.items())), "settings": settings}
        return record | ({"arrays": encoded(self.arrays)} if self.arrays else {})

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], schema: Schema | None = None) -> Allocation:
        """The allocation that `to_dict` wrote.

        Args:
            record: of `to_dict`.
            schema: if given, the allocation must name exactly its fields, see `check`, and have arrays of their size.

        Raises:
            ValueError: if keys are unknown or missing, a value is wrong, or the allocation does not fit the schema.
        """
        unknown = sorted(set(record) - set(KEYS))
        missing = sorted({"method", "dims"} - set(record))
        if unknown or missing:
            raise ValueError(f"the keys of an allocation must be {list(KEYS)}, got {unknown=}, {missing=}")
        most = None if schema is None else most_bytes(schema.num_rows)
        arrays = decoded(record.get("arrays", {}), most)
        allocation = cls(record["method"], record["dims"], record.get("settings", {}), arrays)
        if schema is not None:
            allocation.check(schema)
        return allocation

    @classmethod
    def load(cls, path: str | Path, schema: Schema | None = None) -> Allocation:
        """The allocation in a JSON file.

        Args:
            path: of the file.
            schema: if given, the allocation must name exactly its fields; see `check`.

        Raises:
            ValueError: naming the file, if it is not an allocation or does not fit the schema.
            FileNotFoundError: if the file does not exist.
        """
        text = regular(path).read_bytes()
        try:
            record = json.loads(text.decode("utf-8"), object_pairs_hook=_distinct)
            if not isinstance(record, dict):
                raise ValueError(f"an allocation must be a mapping with the keys {list(KEYS)}, got {record!r}")
            return cls.from_dict(record, schema)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}; edit the file, or derive it again") from error

    def save(self, path: str | Path) -> None:
        """Write the allocation, whole or not at all; equal allocations give equal bytes."""
        write_text(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = repeated(names)
    if twice:
        raise ValueError(f"names must be unique, got {twice} twice")
    return dict(pairs)
