"""The journal of one stage: a file that holds every record before it goes to MLflow.

A journal is a file of JSON lines. A line is a record ``{"k": kind, ...}`` with the fields of `FIELDS`, or, for
metrics, ``[block, step, [values]]``. An earlier record of kind "names" gives the names of the values in the block.
The writer of a journal holds a lock on it: a journal without a lock has no writer.
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
from pipeline.workflow.outputs import regular, whole

Status = Literal["FINISHED", "FAILED", "KILLED"]

FIELDS = {
    "open": {"stage", "key", "configuration", "tags", "dataset", "origin", "time"},
    "run": {"run", "params", "tags", "time"},
    "names": {"id", "run", "names"},
    "tags": {"run", "tags"},
    "artifact": {"run", "path", "sha256", "folder"},  # of the parent if "run" is null; of the runs of "stage" if set
    "parent": {"metrics", "tags"},
    "end": {"run", "status", "time"},
    "close": {"status", "time"},
    "uploaded": {"to"},  # the store has all lines above; written only if the stage did not finish
}
TYPES = {"time": int, "id": int, "stage": str, "key": str, "status": str, "path": str, "folder": str}
TYPES |= {"params": dict, "tags": dict, "metrics": dict, "configuration": dict, "names": list}
READ_BYTES = 1 << 22  # per read
OPEN_SECONDS = 1.0  # that a writer waits for the lock: a reader releases it within a moment, another writer does not
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
    """Reads the complete lines of a journal; each iteration continues where the last one ended.

    Args:
        path: the journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0  # bytes read so far
        self.blocks: dict[int, tuple[str, tuple[str, ...]]] = {}
        self._runs: set[str | None] = {None}
        self._line = 0

    def __iter__(self) -> Iterator[Points | dict[str, Any]]:
        """The records added since the last iteration.

        Raises:
            BadJournal: at a line that is not a record.
        """
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
                lines = content.split(b"\n")[:-1]  # the writer may still replace an incomplete last line
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
            if type(step) is not int or any(type(value) not in (int, float) for value in values):
                raise ValueError("a step that is no whole number, or a value that is no number")
            return Points(run, names, step, values)
        missing = FIELDS[record["k"]] - record.keys()
        if missing:
            raise ValueError(f"no {', '.join(sorted(missing))}")
        if wrong := [key for key, kind in TYPES.items() if key in record and not isinstance(record[key], kind)]:
            raise ValueError(f"wrong types of {', '.join(wrong)}")
        if record["k"] == "run":
            self._runs.add(record["run"])
        elif "run" in record and record["run"] not in self._runs:
            raise ValueError(f"run {record['run']!r} has not been opened")
        if record["k"] == "names":
            self.blocks[record["id"]] = record["run"], tuple(record["names"])
        return record


def check_whole(path: Path) -> None:
    """Check that a journal can be read and ends with the end of its stage, as the one of a finished stage does.

    Raises:
        BadJournal: if it does not.
    """
    last = None
    for last in Reader(path):  # noqa: B007
        pass
    if not isinstance(last, dict) or last["k"] != "close":
        raise BadJournal(f"{path} ends before its stage does")


class Journal:
    """Writes a new journal, or continues an interrupted one.

    A journal that cannot be read is renamed, with a warning. If another process that computes the same content writes
    the journal, this one writes to a new file beside it.

    Args:
        path: the journal; its folder is created.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = regular(path)
        self.marks: dict[str, dict[str, int]] = {}  # run -> metric -> last step
        self.finished: set[str] = set()  # runs that an earlier process has finished
        self._formats: dict[int, str] = {}
        self._blocks = self._end = 0
        self._file = self._opened()
        try:
            self._continue()
        except BadJournal as error:
            kept = set_aside(self.path)
            log.warning("%s: it is kept as %s, and a new journal begins", error, kept.name)
            self.marks, self.finished = {}, set()
            self._file.close()
            self._file = self._opened()

    def _opened(self) -> FileIO:
        file = _open_locked(self.path)
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
            elif record["k"] in ("run", "end"):  # a run may begin again
                change = self.finished.add if record.get("status") == "FINISHED" else self.finished.discard
                change(record["run"])
        self._blocks = max(reader.blocks, default=-1) + 1
        self._end = reader.offset
        self._file.truncate(self._end)  # a killed writer may leave an incomplete line

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record with its passwords masked.

        Args:
            record: the kind ``k`` and the fields of `FIELDS`.
        Raises:
            OSError: if the disk is full; the journal stays as it was.
        """
        self._write(json.dumps(masked(record), default=str).encode() + b"\n")

    def declare(self, run: str, names: tuple[str, ...]) -> int:
        """Declare a block of metrics. Returns its number.

        Args:
            run: name of the run.
            names: of the metrics, in the order of their values.
        """
        block = self._blocks
        self.append({"k": "names", "id": block, "run": run, "names": names})
        self._blocks += 1
        self._formats[block] = "[%d,%d,[" + ",".join(["%.7g"] * len(names)) + "]]\n"
        return block

    def points(self, block: int, step: int, values: Sequence[float], exact: bool) -> None:
        """Write the values of a block at one step.

        Args:
            block: number from `declare`.
            step: the step.
            values: one per name of the block.
            exact: whether to write all digits instead of 7 significant ones.
        Raises:
            OSError: if the disk is full; the journal stays as it was.
        """
        if exact:
            self._write(f"[{block},{step},{json.dumps(values)}]\n".encode())
            return
        line = self._formats[block] % (block, step, *values)
        if "n" in line:  # inf or nan, which Python's JSON spells differently
            line = line.replace("inf", "Infinity").replace("nan", "NaN")
        self._write(line.encode())

    def artifact(
        self,
        run: str | None,
        path: str | Path,
        folder: str = "",
        output: str | Path | None = None,
        stage: str | None = None,
    ) -> None:
        """Copy a file to the folder beside the journal, and record it.

        Args:
            run: name of the run; None for the parent, or for the runs of ``stage``.
            path: the file.
            folder: folder among the artifacts of the run.
            output: final path of the file in the workspace; ``path`` if left out.
            stage: an earlier stage, whose runs get the file; None for a run of this journal.
        Raises:
            FileNotFoundError: if the file does not exist.
            OSError: if the disk is full.
        """
        content = Path(path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        path = output or path
        copy = copy_of(self.path, digest, path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        name = os.path.relpath(path) if Path(path).is_absolute() else str(path)
        record = {"k": "artifact", "run": run, "path": name, "sha256": digest, "folder": folder}
        self.append(record if stage is None else {**record, "stage": stage})

    def copy_to(self, target: Path) -> None:
        """Copy the journal. A copy that fails leaves ``target`` as it was.

        Args:
            target: path of the copy; its folder is created.
        """
        with whole(target) as draft:
            shutil.copyfile(self.path, draft)

    def close(self) -> None:
        """Close and unlock the journal."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:  # a full disk may take only a part of the line
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(self._end)
            raise OSError(error.errno, f"cannot write to the journal: {error.strerror}", str(self.path)) from error
        self._end += len(line)


def _open_locked(path: Path) -> FileIO | None:
    """Open and lock a journal. Returns None if it has another writer."""
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
    """Whether the open file is still at this path: it may have been removed before it was locked."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def has_writer(path: Path) -> bool:
    """Whether a process writes the journal.

    Raises:
        FileNotFoundError: if the journal does not exist.
    """
    with FileIO(path) as file:
        return not lock_now(file, shared=True)


@contextlib.contextmanager
def held(path: Path) -> Iterator[FileIO | None]:
    """Lock a journal for the length of the block, so that no process can write it.

    Yields the open file, or None if the journal has a writer or does not exist.
    """
    try:
        file = FileIO(path, "r+")
    except FileNotFoundError:
        yield None
        return
    with file:
        yield file if lock_now(file) and _is_at(file, path) else None


def finish(path: Path, offset: int, destination: str, remove: bool) -> None:
    """Remove a journal that the store has, or mark it as uploaded in its last line.

    Nothing happens if the journal has a writer or has more lines after ``offset``. An incomplete line after ``offset``
    is removed.

    Args:
        path: the journal.
        offset: number of bytes that the store has.
        destination: `place.destination` of the store.
        remove: whether to remove the journal instead of marking it.
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
    """Whether the store has all of a journal: the file does not exist, or its last line says so.

    Args:
        path: the journal.
        destination: `place.destination` of the store.
    """
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
    """The `place.destination` of the last writer of a journal; None if the journal does not name it."""
    _, opened, rest = path.read_bytes().rpartition(b'{"k": "open"')
    known = re.search(rb'"to": "([0-9a-f]{12})"', rest.partition(b"\n")[0]) if opened else None
    return known[1].decode() if known else None


def set_aside(path: Path) -> Path:
    """Rename a journal that cannot be read, so that it is not read again. Returns its new path."""
    kept = path.with_name(f"{path.name}.bad")
    return path.rename(kept.with_stem(f"{path.name}-{now()}") if kept.exists() else kept)


def copy_of(journal: Path, digest: str, path: str | Path) -> Path:
    """Path of the copy of an artifact that a journal keeps.

    Args:
        journal: path of the journal.
        digest: SHA-256 of the artifact, in hexadecimal.
        path: of the artifact; the copy has the same name.
    """
    return journal.with_suffix(".files") / digest[:20] / Path(path).name


def now() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)
