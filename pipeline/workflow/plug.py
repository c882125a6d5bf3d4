"""Plugs by their names: the folder is the registry."""

from __future__ import annotations

import importlib
from types import ModuleType

from pipeline.workflow.code import ROOT
from pipeline.workflow.validation import suggestion

FOLDERS = {"datasets": "data set", "tasks": "task", "methods": "method", "backbones": "backbone"}
BESIDE = {"chain/worlds": "world"}  # that no stage of the main job loads


def names(folder: str) -> list[str]:
    """Sorted names of the plugs in ``pipeline/<folder>``: its files that do not start with an underscore."""
    return sorted(path.stem for path in (ROOT / "pipeline" / folder).glob("[!_]*.py"))


def check_name(folder: str, name: str, place: str) -> None:
    """Check that a folder has a plug of this name.

    Args:
        folder: key of `FOLDERS` or `BESIDE`.
        name: of the plug.
        place: where the user wrote the name, e.g. ``"params.yaml: method.name"``.

    Raises:
        ValueError: naming the valid names, if it has not.
    """
    valid = names(folder)
    if name not in valid:
        kind = {**FOLDERS, **BESIDE}[folder]
        near = suggestion(name.replace("-", "_"), valid)
        raise ValueError(f"{place}: there is no {kind} {name!r}{near}; there are {', '.join(valid)}")


def plug(folder: str, name: str) -> ModuleType:
    """The module of a plug: ``plug("datasets", "movielens_1m")`` returns ``pipeline.datasets.movielens_1m``.

    Raises:
        ValueError: naming the valid names, if the folder has no such file.
    """
    check_name(folder, name, f"pipeline/{folder}")
    return importlib.import_module(f"pipeline.{folder.replace('/', '.')}.{name}")


def file_of(folder: str, name: str) -> str:
    """The path of a plug's file, relative to the repository."""
    return f"pipeline/{folder}/{name}.py"
