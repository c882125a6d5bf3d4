"""The project files that a file imports, directly or not; also run by hand to write the deps of dvc.yaml."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def closure(path: str) -> set[str]:
    """Paths, relative to the repository, of all project files that ``path`` needs, itself included."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        waiting += imports(current)
    return found


def imports(path: str) -> list[str]:
    files = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        files += [file for name in names if (ROOT / (file := name.replace(".", "/") + ".py")).is_file()]
    return files
