"""What a sweep searches: the part of the parameters that it may change, and how.

``sweep.space`` in params.yaml is nested as the parameters themselves are. Where they have a value it has a list of
choices, or a range ``{low: 0.1, high: 1.0}``: with ``log: true`` it is drawn evenly over its logarithm, with ``step``
in steps. A range from one whole number to another holds whole numbers, unless the parameter itself has a decimal
point.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pydantic import model_validator

from pipeline.workflow.validation import Section, validated

PLACE = "params.yaml: sweep.space"
SEARCHED = (("method", "options"), ("backbone", "options"), ("search",), ("retrain",))
FIXED = {("search", "seed"), ("search", "checkpoint_seconds"), ("retrain", "seeds"), ("retrain", "checkpoint_seconds")}
CANDIDATES = ("search", "candidates")
DIGITS = 4  # of a number from a range: enough for a choice, and short enough to write down

Path = tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """One of some values; a mapping may be one, e.g. of fields to sets of candidates."""

    values: Sequence[Any]

    def labels(self) -> list[str | int | float | bool | None]:
        """Each value as a plain one, which a mapping is not."""
        return [json.dumps(value) if isinstance(value, Mapping | list) else value for value in self.values]

    def value(self, label: Any) -> Any:
        return self.values[self.labels().index(label)]

    def ends(self) -> Sequence[Any]:
        return self.values


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 0))

    def value(self, drawn: float) -> float:
        return drawn if self.whole else min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)

    def ends(self) -> Sequence[float]:
        return self.low, self.high


class WrittenRange(Section):
    """A range as a person writes it."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _order(self) -> WrittenRange:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"with log, low must be above 0 and there is no step, got {self.low} and {self.step}")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be above 0, got {self.step}")
        return self


Space = dict[Path, Choices | Range]


def read(space: Mapping[str, Any], params: Mapping[str, Any]) -> Space:
    """What ``sweep.space`` says, by place in the parameters.

    Raises:
        ValueError: naming what is no parameter, or neither choices nor a range.
    """
    leaves = dict(_leaves(space, params, ()))
    if not leaves:
        raise ValueError(f"{PLACE} is empty; name at least one parameter to search, e.g. search: {{lr: [0.01, 0.03]}}")
    return leaves


def _leaves(space: Any, params: Any, at: Path) -> list[tuple[Path, Choices | Range]]:
    place = ".".join((PLACE, *at))
    if isinstance(space, list):
        if len(space) < 2 or len(set(map(json.dumps, space))) < len(space):
            raise ValueError(f"{place} must be at least two choices, all different, got {space}")
        return [(_searched(at), Choices(space))]
    if isinstance(space, Mapping) and {"low", "high"} & set(space):
        written = validated(WrittenRange, dict(space), place)
        low, high = (float(end) if isinstance(params, float) else end for end in (written.low, written.high))
        return [(_searched(at), Range(low, high, written.log, written.step))]
    if not isinstance(space, Mapping):
        raise ValueError(f"{place} must be a list of choices, or a range {{low: ..., high: ...}}, got {space!r}")
    leaves = []
    for name, inner in space.items():
        by_field = at == CANDIDATES  # the parameters may name one set, and the space one for some fields
        if not by_field and (not isinstance(params, Mapping) or name not in params):
            there = ", ".join(params) if isinstance(params, Mapping) else "none"
            raise ValueError(f"{place}: params.yaml has no {'.'.join((*at, name))} to search; there are {there}")
        leaves += _leaves(inner, None if by_field else params[name], (*at, name))
    return leaves


def _searched(at: Path) -> Path:
    """Refuse what decides on the data, on the size of the full tables, or on chance."""
    inside = any(len(at) > len(part) and at[: len(part)] == part for part in SEARCHED)
    if not inside or at in FIXED:
        allowed = ", ".join(".".join(part) for part in SEARCHED)
        raise ValueError(
            f"{PLACE}: a sweep may not change {'.'.join(at)}; it may change what is in {allowed}, except seeds"
        )
    return at


def apply(params: Mapping[str, Any], values: Mapping[Path, Any]) -> dict[str, Any]:
    """The parameters with these values in their places."""
    changed: dict[str, Any] = deepcopy(dict(params))
    for path, value in values.items():
        if path != _whole(path):
            _set_by_field(changed["search"], path[-1], value)
            continue
        target = changed
        for name in path[:-1]:
            target = target[name]
        target[path[-1]] = value
    return changed


def _set_by_field(search: dict[str, Any], group: str, name: str) -> None:
    """One set of candidates for the fields of a group, ``"user, item"``."""
    if isinstance(search["candidates"], str):
        search["candidates"] = {"default": search["candidates"]}
    search["candidates"].update({field.strip(): name for field in group.split(",")})


def patch(params: Mapping[str, Any], values: Mapping[Path, Any]) -> dict[str, Any]:
    """Of the parameters with these values, those that the values concern, nested."""
    changed = apply(params, values)
    patched: dict[str, Any] = {}
    for path in map(_whole, values):
        source, target = changed, patched
        for name in path[:-1]:
            source, target = source[name], target.setdefault(name, {})
        target[path[-1]] = source[path[-1]]
    return patched


def _whole(path: Path) -> Path:
    """Where a value stands in the parameters; those of fields stand together."""
    return CANDIDATES if path[: len(CANDIDATES)] == CANDIDATES else path


def command(params: Mapping[str, Any], values: Mapping[Path, Any]) -> str:
    """The ``dvc exp run`` that gives params.yaml these values."""
    changed = apply(params, values)
    words: list[str] = []
    for path in dict.fromkeys(map(_whole, values)):
        before, after = params, changed
        for name in path:
            before, after = before[name], after[name]
        words += _overrides(".".join(path), before, after)
    return " ".join(["dvc exp run", *(f"-S {shlex.quote(word)}" for word in words)])


def _overrides(place: str, before: Any, after: Any) -> list[str]:
    """Hydra merges a mapping with the one that is there, so each of its keys is set, added (++) or removed (~)."""
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return [f"{place}={_written(after)}"]
    words = [f"~{place}.{name}" for name in before if name not in after]
    for name, value in after.items():
        if name in before:
            words += _overrides(f"{place}.{name}", before[name], value)
        else:
            words.append(f"++{place}.{name}={_written(value)}")
    return words


def _written(value: Any) -> str:
    """As Hydra's overrides have it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)
