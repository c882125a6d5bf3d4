"""Finds one plug by name: the folder is the registry, the function signature is the config schema."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def names(folder: str) -> list[str]:
    """The plugs in ``pipeline/<folder>``: its files, without those that start with an underscore."""
    return sorted(path.stem for path in (Path(__file__).parent / folder).glob("[!_]*.py"))


def plug(folder: str, name: str) -> ModuleType:
    """``plug("datasets", "movielens-1m")`` -> the module ``pipeline.datasets.movielens_1m``.

    Raises:
        ValueError: if the folder has no such file; the message lists what there is.
    """
    stem = name.replace("-", "_")
    if stem not in names(folder):
        raise ValueError(f"no {name!r} in pipeline/{folder}; there are {', '.join(names(folder))}")
    return importlib.import_module(f"pipeline.{folder}.{stem}")


def check_options(function: Callable[..., Any], options: Mapping[str, Any], place: str) -> None:
    """Refuse options that ``function`` does not take by keyword, and demand those that have no default.

    Args:
        function: its keyword-only parameters are the valid options.
        options: as given by the user.
        place: where the user gave them, e.g. ``"dataset.options of params.yaml"``.

    Raises:
        ValueError: naming the foreign or missing options, and the valid ones.
    """
    parameters = inspect.signature(function).parameters.values()
    taken = {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    valid = f"valid are {', '.join(taken)}" if taken else "there are none to give"
    foreign = [name for name in options if name not in taken]
    if foreign:
        raise ValueError(f"{place}: no option {', '.join(map(repr, foreign))}; {valid}")
    needed = [name for name, parameter in taken.items() if parameter.default is parameter.empty]
    missing = [name for name in needed if name not in options]
    if missing:
        raise ValueError(f"{place}: option {', '.join(map(repr, missing))} must be given; {valid}")
