"""Finds one plug by name: the folder is the registry, the function signature is the config schema."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from math import isfinite
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict


def names(folder: str) -> list[str]:
    """The plugs in ``pipeline/<folder>``: its files, without those that start with an underscore."""
    return sorted(path.stem for path in (Path(__file__).parents[1] / folder).glob("[!_]*.py"))


def plug(folder: str, name: str) -> ModuleType:
    """``plug("datasets", "movielens-1m")`` -> the module ``pipeline.datasets.movielens_1m``.

    Raises:
        ValueError: if the folder has no such file; the message lists what there is.
    """
    stem = str(name).replace("-", "_")
    if stem not in names(folder):
        raise ValueError(f"no {name!r} in pipeline/{folder}; there are {', '.join(names(folder))}")
    return importlib.import_module(f"pipeline.{folder}.{stem}")


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a function takes by keyword alone."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def check_options(
    function: Callable[..., Any] | Sequence[Callable[..., Any]], options: Mapping[str, Any], place: str
) -> None:
    """Refuse options that ``function`` does not take by keyword, and demand those that have no default.

    Args:
        function: its keyword-only parameters are the valid options, their annotations the valid values; or several
            functions that share them.
        options: as given by the user.
        place: where the user gave them, e.g. ``"dataset.options of params.yaml"``.

    Raises:
        ValueError: naming the foreign, missing or wrong options, and the valid ones.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"{place} must be a mapping of names to values, however {options!r}")
    taken: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    for taker in function if isinstance(function, Sequence) else [function]:
        taken |= keywords(taker)
        hinted = taker.__init__ if isinstance(taker, type) and not is_dataclass(taker) else taker  # type: ignore[misc]
        hints |= get_type_hints(hinted, include_extras=True)
    valid = f"valid are {', '.join(taken)}" if taken else "there are none to give"
    foreign = [name for name in options if name not in taken]
    if foreign:
        raise ValueError(f"{place}: no option {', '.join(map(repr, foreign))}; {valid}")
    needed = [name for name, parameter in taken.items() if parameter.default is parameter.empty]
    missing = [name for name in needed if name not in options]
    if missing:
        raise ValueError(f"{place}: option {', '.join(map(repr, missing))} must be given; {valid}")
    for name, value in options.items():
        check_value(value, hints.get(name, Any), f"{place}: option {name!r}")


@dataclass(frozen=True)
class Least:
    """``Annotated[int, Least(1)]`` is a whole number of at least 1."""

    value: float


def check_value(value: Any, hint: Any, place: str) -> None:
    """Refuse a value, as read from YAML, that does not suit a type.

    Args:
        hint: a type. A ``TypedDict`` stands for a mapping with its keys and no others, ``float`` for any finite number,
            and `Least` bounds a number. Types that YAML cannot express are not checked.
        place: where the value stands, e.g. ``"retrain in params.yaml"``.

    Raises:
        ValueError: naming the place, what it should hold, and what it holds.
    """
    if is_typeddict(hint) and isinstance(value, Mapping):
        hints = get_type_hints(hint, include_extras=True)
        foreign = [key for key in value if key not in hints]
        missing = [key for key in hints if key in hint.__required_keys__ and key not in value]
        for problem, found in (("no", foreign), ("missing", missing)):
            if found:
                raise ValueError(f"{place}: {problem} key {', '.join(map(repr, found))}; it has {', '.join(hints)}")
        for key, item in value.items():
            check_value(item, hints[key], f"{place}: {key}")
        return
    expected = _expected(value, hint)
    if expected:
        form = isinstance(value, str) and "number" in expected and _is_number(value)
        remedy = "; without quotes" if form else ""
        raise ValueError(f"{place} must be {expected}, however {value!r}{remedy}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _expected(value: Any, hint: Any) -> str:
    """What ``value`` ought to be, in words; empty if that is what it is."""
    origin, inner = get_origin(hint), get_args(hint)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if origin is Annotated:
        least = next((extra.value for extra in inner[1:] if isinstance(extra, Least)), None)
        wrong = _expected(value, inner[0])
        bound = "" if least is None else f" of at least {least}"
        if not wrong and least is not None and value < least:
            wrong = "a whole number" if inner[0] is int else "a number"
        return wrong and wrong + bound
    if origin in (Union, UnionType):
        wrongs = [_expected(value, one) for one in inner]
        return " or ".join(wrongs) if all(wrongs) else ""
    if origin is Literal:
        return "" if value in inner and type(value) in map(type, inner) else f"one of {list(inner)}"
    if origin is Sequence:
        if not isinstance(value, list | tuple):
            return "a list"
        wrong = next(filter(None, (_expected(v, inner[0]) for v in value)), "")
        return wrong and f"a list, of which each is {wrong}"
    if origin is Mapping or is_typeddict(hint):
        if not isinstance(value, Mapping):
            return "a mapping of names to values"
        wrong = next(filter(None, (_expected(v, inner[1]) for v in value.values())), "")
        return wrong and f"a mapping, of which each value is {wrong}"
    plain = {
        NoneType: (value is None, "null"),
        bool: (isinstance(value, bool), "true or false"),
        int: (number and isinstance(value, int), "a whole number"),
        float: (number and isfinite(value), "a finite number"),
        str: (isinstance(value, str), "a text"),
    }
    suits, words = plain.get(hint, (True, ""))
    return "" if suits else words
