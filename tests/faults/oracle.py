"""What an undisturbed run leaves, to compare with what is there after a disturbance."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tracking.journal import Points, Reader

CODE = {"pipeline", "stages", "sweep", "stream", "chain", ".git", ".dvc", "__pycache__", "mlartifacts", "store"}
OTHER = re.compile(
    r"mlflow\.db.*|printed-.*|\.pipeline/(tracking|optuna)/.*|(.*/)?(dvc\.lock|\.gitignore|\.dvcignore)|.*\.log"
)
KEPT = ".pipeline/"  # of these files only the names are compared: checkpoints of a finished command are too many
TIMED = re.compile(r".*/cells/.*\.json|.*/report\.json")  # files that also say what something took
UNTIMED = re.compile(r"seconds|commit|peak_mib|mlflow_run")  # their keys that differ between two runs


@dataclass(frozen=True)
class Left:
    """What is left in a folder: a digest of every file, and what MLflow's database holds."""

    files: Mapping[str, str]
    runs: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path, database: Path | None = None) -> Left:
        database = database or folder / "mlflow.db"
        return cls(files(folder), runs(database) if database.exists() else {})

    def differences(self, found: Left) -> Iterator[str]:
        """What differs in another folder, in a few words each."""
        for kind in ("files", "runs"):
            here, there = getattr(self, kind), getattr(found, kind)
            for word, names in (
                ("missing", here.keys() - there.keys()),
                ("left behind" if kind == "files" else "too many", there.keys() - here.keys()),
                ("different", {name for name in here.keys() & there.keys() if here[name] != there[name]}),
            ):
                if names:
                    first = sorted(names)[0]
                    detail = f" ({_difference(here[first], there[first])})" if word == "different" else ""
                    yield f"{len(names)} {kind} {word}: {first}{detail}"


def _difference(here: Any, there: Any) -> str:
    if isinstance(here, str):
        return f"{here[:8]}, {there[:8]}"
    parts = [f"{name}: {_first(here.get(name), there.get(name))}" for name in here if here[name] != there.get(name)]
    return "; ".join(parts)[:200]


def _first(here: Any, there: Any) -> str:
    if not (isinstance(here, list) and isinstance(there, list)):
        return f"{here}, {there}"
    lost = [point for point in here if point not in there]
    more = [point for point in there if point not in here]
    return f"{len(here)} and {len(there)} points, lost {lost[:1]}, more {more[:1]}"


def files(folder: Path) -> dict[str, str]:
    """A digest of each file in a folder, without code and records on their way to MLflow."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or CODE & set(path.relative_to(folder).parts) or OTHER.fullmatch(name):
            continue
        if name.startswith(KEPT) or name.endswith("/table.md"):  # table.csv beside it has its figures
            found[name] = "kept"
        elif path.suffix == ".jsonl":
            found[name] = _digest(json.dumps(points(path)).encode())
        elif TIMED.fullmatch(name):
            found[name] = _digest(json.dumps(_untimed(json.loads(path.read_text())), sort_keys=True).encode())
        elif path.name == "table.csv":
            with path.open(newline="") as file:
                found[name] = _digest(json.dumps(_untimed(list(csv.DictReader(file)))).encode())
        else:
            found[name] = _digest(path.read_bytes())
    for path in (folder / ".pipeline/tracking").glob("*.jsonl"):
        found[f"{path.relative_to(folder)}"] = "not in MLflow"
    return found


def points(journal: Path) -> list[Any]:
    """All points of a journal, by run, metric and step: one that was recorded twice is there twice."""
    found: list[Any] = []
    for record in Reader(journal):
        if isinstance(record, Points):
            pairs = zip(record.names, record.values, strict=True)
            found += [[record.run, name, record.step, repr(value)] for name, value in pairs]
    return sorted(found)


def runs(database: Path) -> dict[str, Any]:
    """The runs of an MLflow database by their key, with status and points; parents with their latest figures."""
    found: dict[str, Any] = {}
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        known = store.execute("select run_uuid, status from runs where lifecycle_stage = 'active'").fetchall()
        for run, status in known:
            tags = dict(store.execute("select key, value from tags where run_uuid = ?", (run,)))
            child = "pipeline.key" in tags
            table = "metrics" if child else "latest_metrics"
            wanted = f"select key, step, value, is_nan from {table} where run_uuid = ? order by key, step"
            rows = [list(row) for row in store.execute(wanted, (run,))]
            name = tags.get("pipeline.key") or f"parent {tags['pipeline.configuration']}"
            while name in found:  # two runs of one key
                name += " again"
            found[name] = {"status": status, "points": rows}
    return found


def stored_badly(cache: Path) -> Iterator[str]:
    """Files of DVC's cache whose content is not what their name says."""
    for path in sorted(cache.rglob("*")):
        if path.is_file() and path.parent.parent.name == "md5":
            name = f"{path.parent.name}{path.name}"
            if hashlib.md5(path.read_bytes()).hexdigest() != name.removesuffix(".dir"):
                yield f"{name} in DVC's cache has another content"


def _untimed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _untimed(one) for key, one in value.items() if not UNTIMED.search(key)}
    return [_untimed(one) for one in value] if isinstance(value, list) else value


def _digest(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()
