"""The journal of one stage: every record is a line on disk before anything else happens to it.

A journal is a file of JSON lines. A line is a record ``{"k": kind, ...}`` with the fields of `FIELDS`, or, for
metrics, ``[block, step, [values]]``, where a record of kind "names" has said what the values of the block are called.
Whoever writes a journal holds a lock on it: a journal without a lock has no writer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.tracking.place import lock_now, masked

Status = Literal["FINISHED", "FAILED", "KILLED"]

FIELDS = {
    "open": {"stage", "key", "configuration", "tags", "dataset", "origin", "time"},
    "run": {"run", "params", "tags", "time"},
    "names": {"id", "run", "names"},
    "tags": {"run", "tags"},
    "artifact": {"run", "path", "sha256", "folder"},  # of the parent if "run" is null
    "parent": {"metrics", "tags"},
    "end": {"run", "status", "time"},
    "close": {"status", "time"},
    "uploaded": {"to"},  # the store has all lines above, though the stage did not finish
}
READ_BYTES = 1 << 22  # at a time
OPEN_SECONDS = 1.0  # that a writer waits for a lock: readers hold it for a moment, another writer for longer
log = logging.getLogger("pipeline.tracking")


class BadJournal(ValueError):
    """A line of a journal is not a record."""


class Points(NamedTuple):
    """One value of each of several metrics of a run, at one step."""

    run: str
    names: tuple[str, ...]
    step: int
    values: list[float]


class Reader:
    """Reads the whole lines of a journal, from where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0  # up to which the journal has been read, in bytes
        self.blocks: dict[int, tuple[str, tuple[str, ...]]] = {}
        self._runs: set[str | None] = {None}
        self._line = 0

    def __iter__(self) -> Iterator[Points | dict[str, Any]]:
        """The records that have been added; raises `BadJournal` at a line that is not one."""
        for line in self._lines():
            self._line += 1
            try:
                record = self._record(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise BadJournal(f"{self.path}, line {self._line} is not a record ({reason})") from error
            self.offset += len(line) + 1
            yield record

    def _lines(self) -> Iterator[bytes]:
        size = READ_BYTES
        with FileIO(self.path) as file:
            while True:
                file.seek(self.offset)
                content = file.read(size)
                lines = content.split(b"\n")[:-1]  # the writer may replace the rest, but never a whole line
                yield from lines
                if not lines and len(content) < size:
                    return
                size = size if lines else 2 * size

    def _record(self, record: Any) -> Points | dict[str, Any]:
        if isinstance(record, list):
            block, step, values = record
            run, names = self.blocks[block]
            if len(values) != len(names):
                raise ValueError(f"{len(values)} values for {len(names)} metrics")
            return Points(run, names, step, values)
        missing = FIELDS[record["k"]] - record.keys()
        if missing:
            raise ValueError(f"no {', '.join(sorted(missing))}")
        if record["k"] == "run":
            self._runs.add(record["run"])
        elif "run" in record and record["run"] not in self._runs:
            raise ValueError(f"run {record['run']!r} has not been opened")
        if record["k"] == "names":
            self.blocks[record["id"]] = record["run"], tuple(record["names"])
        return record


class Journal:
    """Writes a journal, or continues one that was cut short; one that cannot be read is set aside, with a warning.

    Another process may be writing it, since it computes the same content; this one then writes a file beside it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.marks: dict[str, dict[str, int]] = {}  # run -> metric -> last step
        self._formats: dict[int, str] = {}
        self._blocks = self._end = 0
        self._file = self._opened()
        try:
            self._continue()
        except BadJournal as error:
            kept = set_aside(self.path)
            log.warning("%s: it is kept as %s, and a new journal begins", error, kept.name)
            self.marks.clear()
            self._file.close()
            self._file = self._opened()

    def _opened(self) -> FileIO:
        file = _for_writing(self.path)
        if file is None:
            self.path = self.path.with_name(f"{self.path.stem}-{os.getpid()}-{now()}.jsonl")
            file = FileIO(self.path, "a+")
            lock_now(file)
        return file

    def _continue(self) -> None:
        reader = Reader(self.path)
        for record in reader:
            if isinstance(record, Points):
                self.marks[record.run].update(dict.fromkeys(record.names, record.step))
            elif record["k"] == "names":
                self.marks.setdefault(record["run"], {})
        self._blocks = max(reader.blocks, default=-1) + 1
        self._end = reader.offset
        self._file.truncate(self._end)  # a kill leaves a part of a line

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record, without passwords. A full disk raises OSError, and leaves the journal as it was."""
        self._write(json.dumps(masked(record), default=str).encode() + b"\n")

    def declare(self, run: str, names: tuple[str, ...]) -> int:
        """The number of a new block of metrics."""
        block = self._blocks
        self.append({"k": "names", "id": block, "run": run, "names": names})
        self._blocks += 1
        self._formats[block] = "[%d,%d,[" + ",".join(["%.7g"] * len(names)) + "]]\n"
        return block

    def points(self, block: int, step: int, values: Sequence[float], exact: bool) -> None:
        """Write the values of a block, with 7 significant digits or with all of them."""
        if exact:
            self._write(f"[{block},{step},{json.dumps(values)}]\n".encode())
            return
        line = self._formats[block] % (block, step, *values)
        if "n" in line:  # inf, nan: JSON as Python reads it has other names for them
            line = line.replace("inf", "Infinity").replace("nan", "NaN")
        self._write(line.encode())

    def artifact(self, run: str | None, path: str | Path, folder: str, output: str | Path | None = None) -> None:
        """Keep a copy of a file beside the journal, and record it."""
        content = Path(path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        path = output or path
        copy = copy_of(self.path, digest, path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        name = os.path.relpath(path) if Path(path).is_absolute() else str(path)
        self.append({"k": "artifact", "run": run, "path": name, "sha256": digest, "folder": folder})

    def copy_to(self, target: Path) -> None:
        """Copy the journal, wholly or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(self.path, draft).replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def close(self) -> None:
        """Unlock the journal: it has no writer any more."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:  # a full disk takes a part of the line, and refuses the rest of it
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(self._end)
            raise OSError(error.errno, f"cannot record any more: {error.strerror}", str(self.path)) from error
        self._end += len(line)


def _for_writing(path: Path) -> FileIO | None:
    """The journal, open and locked; None if it has another writer."""
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        file = FileIO(path, "a+")
        if lock_now(file) and _is_at(file, path):
            return file
        file.close()
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether an open file is still the one at this path: it may have been removed while we waited for its lock."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def has_writer(path: Path) -> bool:
    """Whether a process writes the journal."""
    with FileIO(path) as file:
        return not lock_now(file, shared=True)


@contextlib.contextmanager
def held(path: Path) -> Iterator[FileIO | None]:
    """A journal, kept from getting a writer for the length of the block; None if it has one, or is gone."""
    try:
        file = FileIO(path, "r+")
    except FileNotFoundError:
        yield None
        return
    with file:
        yield file if lock_now(file) and _is_at(file, path) else None


def finish(path: Path, offset: int, destination: str, remove: bool) -> None:
    """Remove a journal that has arrived up to ``offset``, or write at its end that it has.

    Neither is done if it has been written to since; a part of a line after ``offset`` is removed.
    """
    with held(path) as file:
        if file is None:
            return
        file.seek(offset)
        if b"\n" in file.read():
            return
        if remove:
            shutil.rmtree(path.with_suffix(".files"), ignore_errors=True)
            path.unlink()
        else:
            file.truncate(offset)
            file.seek(offset)
            file.write(_mark(destination))


def has_arrived(path: Path, destination: str) -> bool:
    """Whether the store has all of a journal: it is gone, or says so in its last line."""
    mark = _mark(destination)
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(mark)))
            return file.read() == mark
    except FileNotFoundError:
        return True


def _mark(destination: str) -> bytes:
    return json.dumps({"k": "uploaded", "to": destination}).encode() + b"\n"


def recorded_for(path: Path) -> str | None:
    """The `place.destination` that the last writer of a journal records to; None if that is not known."""
    _, opened, rest = path.read_bytes().rpartition(b'{"k": "open"')
    known = re.search(rb'"to": "([0-9a-f]{12})"', rest.partition(b"\n")[0]) if opened else None
    return known[1].decode() if known else None


def set_aside(path: Path) -> Path:
    """Rename a journal that cannot be read, so that nobody tries again. Returns its new path."""
    kept = path.with_name(f"{path.name}.bad")
    return path.rename(kept.with_stem(f"{path.name}-{now()}") if kept.exists() else kept)


def copy_of(journal: Path, digest: str, path: str | Path) -> Path:
    """Where the journal's own copy of an artifact is."""
    return journal.with_suffix(".files") / digest[:20] / Path(path).name


def now() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)
