"""The search space of a sweep: the parameters that it varies, and their values.

``sweep.space`` in params.yaml has the same nesting as the parameters. In the place of a parameter's value it has a list
of choices, or a range ``{low: 0.1, high: 1.0}``. ``log: true`` draws uniformly over the logarithm; ``step`` draws
``low`` plus multiples of a step. A range between two whole numbers draws whole numbers, unless the parameter has a
decimal point.
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
DIGITS = 4  # significant digits of a number drawn from a range; short enough to copy

Path = tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """A list of values to choose from. A value may be a mapping, e.g. from fields to sets of candidates."""

    values: Sequence[Any]

    def labels(self) -> list[str | int | float | bool | None]:
        """The values as Optuna stores them: mappings and lists become JSON."""
        return [json.dumps(value) if isinstance(value, Mapping | list) else value for value in self.values]

    def value(self, label: Any) -> Any:
        """The value with this label."""
        return self.values[self.labels().index(label)]

    def ends(self) -> Sequence[Any]:
        """The values to check before the sweep starts: all of them."""
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
        """Whether the range draws whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 0))

    def value(self, drawn: float) -> float:
        """The drawn number, rounded to `DIGITS` significant digits if it is not whole."""
        return drawn if self.whole else min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)

    def ends(self) -> Sequence[float]:
        """The values to check before the sweep starts: the two ends."""
        return self.low, self.high


class WrittenRange(Section):
    """A range as it stands in params.yaml."""

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
    """Read ``sweep.space``.

    Args:
        space: the section ``sweep.space`` of params.yaml.
        params: all parameters, nested.

    Returns:
        The choices or the range of each searched parameter, by its place in the parameters.

    Raises:
        ValueError: if the space is empty, names an unknown parameter or one that a sweep may not change, or has
            neither choices nor a range for it.
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
        by_field = at == CANDIDATES  # params.yaml may name one set for all fields where the space names one for some
        if not by_field and (not isinstance(params, Mapping) or name not in params):
            there = ", ".join(params) if isinstance(params, Mapping) else "none"
            raise ValueError(f"{place}: params.yaml has no {'.'.join((*at, name))} to search; there are {there}")
        leaves += _leaves(inner, None if by_field else params[name], (*at, name))
    return leaves


def _searched(at: Path) -> Path:
    """The place itself. Parameters of the data, of the full tables' size and seeds are refused with a `ValueError`."""
    inside = any(len(at) > len(part) and at[: len(part)] == part for part in SEARCHED)
    if not inside or at in FIXED:
        allowed = ", ".join(".".join(part) for part in SEARCHED)
        raise ValueError(
            f"{PLACE}: a sweep may not change {'.'.join(at)}; it may change what is in {allowed}, except seeds"
        )
    return at


def apply(params: Mapping[str, Any], values: Mapping[Path, Any]) -> dict[str, Any]:
    """A copy of the parameters in which these values are set.

    Args:
        params: all parameters, nested.
        values: values by place in the parameters.
    """
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
    """Set one set of candidates for all fields of a group such as ``"user, item"``."""
    if isinstance(search["candidates"], str):
        search["candidates"] = {"default": search["candidates"]}
    search["candidates"].update({field.strip(): name for field in group.split(",")})


def patch(params: Mapping[str, Any], values: Mapping[Path, Any]) -> dict[str, Any]:
    """The part of the parameters that these values change, nested, with the values set.

    Args:
        params: all parameters, nested.
        values: values by place in the parameters.
    """
    changed = apply(params, values)
    patched: dict[str, Any] = {}
    for path in map(_whole, values):
        source, target = changed, patched
        for name in path[:-1]:
            source, target = source[name], target.setdefault(name, {})
        target[path[-1]] = source[path[-1]]
    return patched


def _whole(path: Path) -> Path:
    """The place of a value in the parameters. The candidates of all fields share one place."""
    return CANDIDATES if path[: len(CANDIDATES)] == CANDIDATES else path


def command(params: Mapping[str, Any], values: Mapping[Path, Any]) -> str:
    """The ``dvc exp run`` command that sets these values in params.yaml.

    Args:
        params: all parameters as params.yaml has them now, nested.
        values: values by place in the parameters.
    """
    changed = apply(params, values)
    words: list[str] = []
    for path in dict.fromkeys(map(_whole, values)):
        before, after = params, changed
        for name in path:
            before, after = before[name], after[name]
        words += _overrides(".".join(path), before, after)
    return " ".join(["dvc exp run", *(f"-S {shlex.quote(word)}" for word in words)])


def _overrides(place: str, before: Any, after: Any) -> list[str]:
    """The overrides that turn ``before`` into ``after``.

    Hydra merges mappings, so each key is set, added (++) or removed (~).
    """
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
    """A value in the syntax of Hydra's overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)
