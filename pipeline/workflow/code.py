"""The import closure of source files, and content keys for their results."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = "pipeline/tracking/"  # it records results and does not affect them


def version() -> str:
    """The version of this project; "unknown" where it is not installed."""
    try:
        return importlib.metadata.version("autodim-pipeline")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def closure(files: Iterable[str]) -> list[str]:
    """The given files and the project files that they import, directly or indirectly, except those in `RECORDS`.

    Imports inside functions count, and so does the ``__init__.py`` of every package on the way to a module. A plug
    that is loaded by its name is not found; pass its file.

    Args:
        files: paths relative to the repository, with forward slashes.

    Returns:
        Sorted paths relative to the repository.
    """
    reached: set[str] = set()
    queue = list(files)
    while queue:
        file = queue.pop()
        if file not in reached and not file.startswith(RECORDS):
            reached.add(file)
            queue += imports(file)
    return sorted(reached)


@functools.cache
def imports(file: str) -> tuple[str, ...]:
    """The project files that one file imports directly; paths are relative to the repository."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"), file)
    return tuple(dict.fromkeys(path for name in _imported(tree) for path in _files_of(name)))


def _imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(name: str) -> Iterator[str]:
    """The files of a module and of the packages around it, if they belong to the project."""
    parts = name.split(".")
    packages = ["/".join([*parts[:end], "__init__.py"]) for end in range(1, len(parts) + 1)]
    for path in ["/".join(parts) + ".py", *packages]:
        if (ROOT / path).is_file():
            yield path


def content_key(files: Iterable[str], *parts: Any, inputs: Iterable[str | Path] = ()) -> str:
    """A hash of code, parameters and inputs; equal keys mean interchangeable results.

    Args:
        files: source files of the project; their whole `closure` is hashed.
        parts: JSON values, e.g. parameters.
        inputs: small files to hash, e.g. a schema.json, which holds checksums of the large arrays.

    Returns:
        20 hex digits.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for path in closure(files):
        digest.update(path.encode() + b"\0" + (ROOT / path).read_bytes())
    for file in map(Path, inputs):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:20]
