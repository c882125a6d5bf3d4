"""What a sweep searches: the part of the parameters that it may change, and how.

``sweep.space`` in params.yaml is nested as the parameters themselves are. Where they have a value it has a list of
choices, or a range ``{low: 0.1, high: 1.0}``, with ``log: true`` drawn evenly over its logarithm, or with ``step``.
A range from one whole number to another holds whole numbers, unless the parameter itself has a point, as 1.0 has.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypedDict

from pipeline.workflow.plug import check_value

PLACE = "params.yaml: sweep: space"
SEARCHED = (("method", "options"), ("backbone", "options"), ("search",), ("retrain",))
FIXED = {("search", "seed"), ("search", "checkpoint_seconds"), ("retrain", "seeds"), ("retrain", "checkpoint_seconds")}
CANDIDATES = ("search", "candidates")
DIGITS = 4  # of a number from a range: enough for a choice, and short enough to write down

Path = tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """One of some values; a mapping, as of fields to sets of candidates, may be one."""

    values: Sequence[Any]

    def labels(self) -> list[str | int | float | bool | None]:
        """Each as a plain value, which a mapping is not."""
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


class _Range(TypedDict):
    low: float
    high: float


class _GivenRange(_Range, total=False):
    log: bool
    step: float


Space = dict[Path, Choices | Range]


def read(space: Mapping[str, Any], params: Mapping[str, Any]) -> Space:
    """What ``sweep.space`` says, by place in the parameters.

    Raises:
        ValueError: naming what is no parameter, or no choices and no range.
    """
    found = dict(_leaves(space, params, ()))
    if not found:
        raise ValueError(f"{PLACE} is empty; name at least one parameter to search, e.g. search: {{lr: [0.01, 0.03]}}")
    return found


def _leaves(space: Any, params: Any, at: Path) -> list[tuple[Path, Choices | Range]]:
    place = ": ".join((PLACE, *at))
    if isinstance(space, list):
        if len(space) < 2 or len(set(map(json.dumps, space))) < len(space):
            raise ValueError(f"{place} must be at least two choices, and distinct, however {space}")
        return [(_searched(at), Choices(space))]
    if isinstance(space, Mapping) and {"low", "high"} & set(space):
        check_value(space, _GivenRange, place)
        if space["low"] >= space["high"]:
            raise ValueError(f"{place}: low must be below high, however {dict(space)}")
        if space.get("log") and (space["low"] <= 0 or "step" in space):
            raise ValueError(f"{place}: with log, low must be above 0, and there is no step, however {dict(space)}")
        if space.get("step", 1) <= 0:
            raise ValueError(f"{place}: step must be above 0, however {dict(space)}")
        number = float if isinstance(params, float) else lambda value: value
        return [(_searched(at), Range(**{**space, "low": number(space["low"]), "high": number(space["high"])}))]
    if not isinstance(space, Mapping):
        raise ValueError(f"{place} must be a list of choices, or a range {{low: ..., high: ...}}, however {space!r}")
    leaves = []
    for name, inner in space.items():
        by_field = at == CANDIDATES  # which may be one set's name in the parameters, and by field here
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
            f"{PLACE}: {'.'.join(at)} is not for a sweep to change; it may change what is in {allowed}, except seeds"
        )
    return at


def apply(params: Mapping[str, Any], values: Mapping[Path, Any]) -> dict[str, Any]:
    """The parameters with these values in their places."""
    given: dict[str, Any] = deepcopy(dict(params))
    for path, value in values.items():
        if path != _whole(path):
            _set_by_field(given["search"], path[-1], value)
            continue
        target = given
        for name in path[:-1]:
            target = target[name]
        target[path[-1]] = value
    return given


def _set_by_field(search: dict[str, Any], group: str, name: str) -> None:
    """One set of candidates for the fields of a group, ``"user, item"``."""
    if isinstance(search["candidates"], str):
        search["candidates"] = {"default": search["candidates"]}
    search["candidates"].update({field.strip(): name for field in group.split(",")})


def patch(params: Mapping[str, Any], values: Mapping[Path, Any]) -> dict[str, Any]:
    """Of the parameters with these values, those that the values concern, nested."""
    given = apply(params, values)
    found: dict[str, Any] = {}
    for path in map(_whole, values):
        source, target = given, found
        for name in path[:-1]:
            source, target = source[name], target.setdefault(name, {})
        target[path[-1]] = source[path[-1]]
    return found


def _whole(path: Path) -> Path:
    """Where a value stands in the parameters; those of fields stand together."""
    return CANDIDATES if path[: len(CANDIDATES)] == CANDIDATES else path


def command(params: Mapping[str, Any], values: Mapping[Path, Any]) -> str:
    """The ``dvc exp run`` that gives params.yaml these values."""
    given = apply(params, values)
    words: list[str] = []
    for path in dict.fromkeys(map(_whole, values)):
        before, after = params, given
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
