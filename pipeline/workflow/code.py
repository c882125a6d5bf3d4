"""Which files of the project a piece of it runs, and a name for what it computes."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = "pipeline/tracking/"  # where results are recorded has no part in what they are


def closure(files: Iterable[str]) -> list[str]:
    """The files that these run: themselves and all they import, directly or not, without `RECORDS`.

    A package counts with every ``__init__.py`` on the way to it. Imports inside functions count too. A plug that is
    loaded by its name is not seen; give its file.

    Args:
        files: paths relative to the repository, with forward slashes.

    Returns:
        Sorted paths relative to the repository.
    """
    found: set[str] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in found and not file.startswith(RECORDS):
            found.add(file)
            waiting += imports(file)
    return sorted(found)


@functools.cache
def imports(file: str) -> tuple[str, ...]:
    """The files of the project that one file imports itself."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"), file)
    return tuple(dict.fromkeys(path for name in _imported(tree) for path in _files_of(name)))


def _imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(name: str) -> Iterator[str]:
    """The module of that name and the packages around it, as far as they are files of the project."""
    parts = name.split(".")
    packages = ["/".join([*parts[:end], "__init__.py"]) for end in range(1, len(parts) + 1)]
    for path in ["/".join(parts) + ".py", *packages]:
        if (ROOT / path).is_file():
            yield path


def content_key(files: Iterable[str], *parts: Any, inputs: Iterable[str | Path] = ()) -> str:
    """Names what code computes from parameters and inputs: equal keys mean interchangeable results.

    Args:
        files: of the project, where the code starts; see `closure`.
        parts: JSON values, e.g. parameters.
        inputs: small files whose bytes count, e.g. a schema.json, which holds checksums of the large arrays.

    Returns:
        20 hex digits.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for path in closure(files):
        digest.update(path.encode() + b"\0" + (ROOT / path).read_bytes())
    for place in map(Path, inputs):
        digest.update(place.name.encode() + b"\0" + place.read_bytes())
    return digest.hexdigest()[:20]
