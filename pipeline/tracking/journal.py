"""The journal of one stage: every record is a line on disk before anything else happens to it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Journal:
    """An append-only file of JSON lines, one writer at a time; each line reaches the system before the next.

    A line is a record ``{"k": kind, ...}`` or, for metrics, ``[block, step, [values]]``, where a record of kind
    "names" has declared what the block's values are called.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        if not _lock_now(self._file):  # the same content is being computed elsewhere: the runs will be shared
            self._file.close()
            path = path.with_name(f"{path.stem}-{os.getpid()}.jsonl")
            self._file = path.open("a+b", buffering=0)
            _lock_now(self._file)
        self.path = path
        self.marks: dict[str, dict[str, int]] = {}  # run -> metric -> last step
        self._formats: dict[int, str] = {}
        self._blocks = 0
        self._continue()

    def _continue(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # torn by a kill
            self._file.truncate(whole)
        blocks: dict[int, tuple[str, list[str]]] = {}
        step: int
        for line in content[:whole].splitlines():
            record = json.loads(line)
            if isinstance(record, list):
                run, names = blocks[record[0]]
                step = record[1]
                self.marks[run].update(dict.fromkeys(names, step))
            elif record["k"] == "names":
                blocks[record["id"]] = record["run"], record["names"]
                self.marks.setdefault(record["run"], {})
        self._blocks = max(blocks, default=-1) + 1

    def append(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, default=str).encode() + b"\n")

    def declare(self, run: str, names: tuple[str, ...]) -> int:
        block = self._blocks
        self._blocks += 1
        self._formats[block] = "[%d,%d,[" + ",".join(["%.7g"] * len(names)) + "]]\n"
        self.append({"k": "names", "id": block, "run": run, "names": names})
        return block

    def points(self, block: int, step: int, values: Sequence[float], exact: bool) -> None:
        if exact:
            self._file.write(f"[{block},{step},{json.dumps(values)}]\n".encode())
            return
        line = self._formats[block] % (block, step, *values)
        if "n" in line:  # inf, nan: JSON as Python reads it has other names for them
            line = line.replace("inf", "Infinity").replace("nan", "NaN")
        self._file.write(line.encode())

    def artifact(self, run: str | None, path: str | Path, folder: str, output: str | Path | None = None) -> None:
        content = Path(path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        path = output or path
        kept = copy_of(self.path, digest, path)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(content)
        name = os.path.relpath(path) if Path(path).is_absolute() else str(path)
        self.append({"k": "artifact", "run": run, "path": name, "sha256": digest, "folder": folder})

    def copy_to(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(self.path, draft)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def remove(self) -> None:
        remove(self.path)

    def close(self) -> None:
        self._file.close()


def copy_of(journal: Path, digest: str, path: str | Path) -> Path:
    """Where the journal's own copy of an artifact is."""
    return journal.with_suffix(".files") / digest[:20] / Path(path).name


def remove(journal: Path) -> None:
    """With its copies of artifacts."""
    shutil.rmtree(journal.with_suffix(".files"), ignore_errors=True)
    journal.unlink(missing_ok=True)


def _lock_now(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def owned(journal: Path) -> Iterator[bool]:
    """Whether the journal is there and nobody writes it; holds it for the length of the block if so."""
    try:
        file = journal.open("rb")
    except FileNotFoundError:  # somebody has brought it in since it was listed
        yield False
        return
    with file:
        yield _lock_now(file) and journal.exists()


def last_record(journal: Path) -> Any:
    """The last line of a journal; None if there is none, or it is torn."""
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - 4096))
        lines = file.read().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def now() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values under names with dots, as text."""
    found: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found
