"""The decision of a method, as a small file: one dimension per field, and what else the method has to know."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.allocation.arrays import decoded, encoded
from pipeline.data.schema import Schema

KEYS = ("method", "dims", "settings", "arrays")


@dataclass(frozen=True, eq=False)
class Allocation:
    """Which dimension each field gets, and which method has to build it.

    Args:
        method: name of the method that builds the embedding.
        dims: dimension of each field, by name; 0 drops the field. At least one field stays.
        settings: what the method needs besides ``dims``; JSON values. Without any the method builds its plain form,
            from which candidates are priced.
        arrays: what it needs for every row or cell of its tables, e.g. a mask; of the kept fields.
    """

    method: str
    dims: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not self.method:
            raise ValueError(f"method must be the name of a method, however: {self.method!r}")
        for key, value in (("dims", self.dims), ("settings", self.settings)):
            if not isinstance(value, dict):
                raise ValueError(f"{key} must map names to values, however: {value!r}")
        wrong = {name: d for name, d in self.dims.items() if type(d) is not int or d < 0}
        if wrong:
            raise ValueError(f"dims must be whole numbers from 0 (0 drops the field), however: {wrong}")
        if not any(self.dims.values()):
            raise ValueError("every field has dim 0 and would be dropped; give at least one field a dim of 1 or more")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allocation) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.digest())

    def digest(self) -> str:
        """Names what the allocation builds, whatever file it stands in."""
        return hashlib.sha256(json.dumps(self.to_dict(), allow_nan=False).encode()).hexdigest()

    def check(self, schema: Schema) -> None:
        """Refuse a schema that has not exactly these fields."""
        foreign = sorted(set(self.dims) - set(schema.names))
        missing = sorted(set(schema.names) - set(self.dims))
        wrong = []
        if foreign:
            wrong.append(f"dims are given for {foreign}, which the schema does not have")
        if missing:
            wrong.append(f"no dim is given for {missing} (0 drops a field)")
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}; the schema's fields are {list(schema.names)}")

    def kept(self) -> tuple[str, ...]:
        """Names of the fields that are not dropped."""
        return tuple(name for name, d in self.dims.items() if d)

    def of_kept(self) -> Allocation:
        """The same without the fields that are dropped."""
        return replace(self, dims={name: self.dims[name] for name in self.kept()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values; equal allocations give the same keys in the same order."""
        settings = json.loads(json.dumps(self.settings, sort_keys=True, allow_nan=False))
        record = {"method": self.method, "dims": dict(sorted(self.dims.items())), "settings": settings}
        return record | ({"arrays": encoded(self.arrays)} if self.arrays else {})

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Allocation:
        unknown = sorted(set(record) - set(KEYS))
        missing = sorted({"method", "dims"} - set(record))
        if unknown or missing:
            raise ValueError(f"an allocation has the keys {list(KEYS)}, however: {unknown=}, {missing=}")
        return cls(record["method"], record["dims"], record.get("settings", {}), decoded(record.get("arrays", {})))

    @classmethod
    def load(cls, path: str | Path, schema: Schema | None = None) -> Allocation:
        """Read an allocation.

        Args:
            schema: if given, the fields that the file has to name; see `check`.

        Raises:
            ValueError: naming the file, if it is no allocation, or one for another schema.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_distinct)
            if not isinstance(record, dict):
                raise ValueError(f"an allocation has the keys {list(KEYS)}, however: {record!r}")
            allocation = cls.from_dict(record)
            if schema is not None:
                allocation.check(schema)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; edit the file, or derive it again") from error
        return allocation

    def save(self, path: str | Path) -> None:
        """Write the allocation; equal allocations give equal bytes, and a failure leaves the old file."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            draft.write_bytes(text.encode())
            draft.replace(final)
        finally:
            draft.unlink(missing_ok=True)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"these names occur twice: {twice}")
    return dict(pairs)
