"""From a journal to the store.

Metrics in MLflow carry the timestamp ``start of the run + step`` milliseconds: a replay writes the same points.
From the `EVERY_STEP`-th record of a series on MLflow gets every second, from twice as many on every fourth, ...
and the last; the journal holds them all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking.identity import configuration_key, is_dead, origin, this_process
from pipeline.tracking.journal import Status, copy_of, flat, last_record, now, owned, remove
from pipeline.tracking.place import folder
from pipeline.tracking.store import Point, Store, legal_key

EVERY_STEP = 1000  # records of a series that all go to MLflow, before it thins out; MLflow draws 320 points per curve
POINTS_AT_A_TIME = 50_000  # that wait in memory


class _Series:
    """The points of one run on their way to the store."""

    def __init__(self, run: Any, complete: bool) -> None:
        self.run = run
        self.complete = complete
        self.ended = False
        self.sent = 0
        self.waiting: dict[str, list[tuple[int, float]]] = {}
        self.held_back: dict[tuple[str, ...], tuple[int, list[float]]] = {}  # thinned out, unless the last
        self.records: dict[tuple[str, ...], int] = {}
        self.marks = {metric.key: metric.step for metric in run.data.to_proto().metrics}  # what the store has
        self.nonfinite: dict[str, str] = {}

    def add(self, keys: tuple[str, ...], step: int, values: list[float]) -> int:
        """Take one line of the journal. Returns the number of points that wait because of it."""
        count = self.records[keys] = self.records.get(keys, -1) + 1
        if count >= EVERY_STEP and count % (1 << (count // EVERY_STEP).bit_length()):
            self.held_back[keys] = step, values
            return 0
        self.held_back.pop(keys, None)
        return self._wait(keys, step, values)

    def add_last(self) -> None:
        for keys, (step, values) in self.held_back.items():
            self._wait(keys, step, values)
        self.held_back.clear()

    def _wait(self, keys: tuple[str, ...], step: int, values: list[float]) -> int:
        for key, value in zip(keys, values, strict=True):
            if math.isinf(value):  # MLflow would store 1.8e308, and no chart survives that
                self.nonfinite.setdefault(key, f"{value} at step {step}")
            elif self.marks.get(key, step - 1) < step:
                self.waiting.setdefault(key, []).append((step, value))
        return len(keys)

    def points(self) -> list[Point]:
        """All that waits, series by series."""
        start = self.run.info.start_time
        return [(key, value, start + step, step) for key, line in self.waiting.items() for step, value in line]


class Replay:
    """Brings one journal to the store, line by line, as far as it has been written.

    After an error it is of no more use; another one from the beginning of the journal finds out what the store has.

    Args:
        configuration: counts instead of the journal's own; for journals that DVC has restored.
        process: tags of the living process that writes the journal; None for a journal that nobody writes.
    """

    def __init__(
        self,
        store: Store,
        journal: Path,
        workspace: Path | None = None,
        configuration: Mapping[str, Any] | None = None,
        process: Mapping[str, str] | None = None,
        progress: Callable[[int], None] = lambda left: None,
    ) -> None:
        self.closed: Status | None = None
        self._store, self._journal, self._workspace = store, journal, workspace
        self._configuration = configuration
        self._live = process is not None
        self._process = process or this_process()
        self._progress = progress
        self._offset = 0
        self._open: dict[str, Any] = {}
        self._parent: Any = None
        self._series: dict[str, _Series] = {}
        self._blocks: dict[int, tuple[str, tuple[str, ...]]] = {}
        self._cached: dict[str, str] = {}  # run name -> run id
        self._waiting = 0
        self._notes: list[str] = []

    def advance(self) -> None:
        """Bring in what has been written since the last time; a line that is not complete waits."""
        with self._journal.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                record = json.loads(line)
                if isinstance(record, list):
                    self._points(*record)
                else:
                    self._record(record)
        for series in self._series.values():
            self._send(series)

    def abandon(self) -> None:
        """The writer is gone: whatever has no end was killed."""
        for series in self._series.values():
            if not series.complete and not series.ended:
                self._end(series, "KILLED", now())
        if self._parent is not None and self.closed is None:
            self.end_parent("KILLED")

    def end_parent(self, status: Status) -> None:
        """Unless it is FINISHED, or another process is at it and lives."""
        run = self._store.get(self._parent)
        ours = self._process.items() <= run.data.tags.items()
        busy = run.info.status == "RUNNING" and not ours and not is_dead(run.data.tags)
        if self._live or (run.info.status != "FINISHED" and not busy):
            self._store.end(run, status)

    def summary(self) -> Iterator[str]:
        for name, series in self._series.items():
            run_id = series.run.info.run_id
            if name in self._cached and series.complete:
                yield f"run {name} {run_id} is another configuration's, linked"
            else:
                yield f"run {name} {run_id} " + (
                    "was complete" if series.complete else f"brought in, {series.sent} points"
                )
        yield from self._notes

    def _record(self, record: dict[str, Any]) -> None:
        kind, name = record["k"], record.get("run")
        if kind == "open":
            self._open_parent(record)
        elif kind == "run":
            self._open_run(record)
        elif kind == "parent":
            self._write_parent(record)
        elif kind == "artifact":
            if name is None or not self._series[name].complete:
                self._send_artifact(self._parent if name is None else self._series[name].run, record)
        elif kind == "names":
            self._blocks[record["id"]] = record["run"], tuple(map(legal_key, record["names"]))
        elif kind == "tags":
            if not self._series[record["run"]].complete:
                self._store.write(self._series[record["run"]].run, record["tags"])
        elif kind == "end":
            series = self._series[record["run"]]
            if not series.complete and not series.ended:
                self._end(series, record["status"], record["time"])
        elif kind == "close":
            self.closed = record["status"]
            cached = f"pipeline.cached.{self._open['stage']}"
            if not self._cached:  # since then it has computed its own
                self._store.untag(self._parent, cached)
            if self._configuration is None:
                self.end_parent(record["status"])

    def _open_parent(self, record: dict[str, Any]) -> None:
        self._open, self.closed = record, None
        configuration = record["configuration"] if self._configuration is None else self._configuration
        key = configuration_key(configuration)
        tags = dict(record["tags"])
        if self._live:
            tags |= record["origin"]
            tags |= self._process
        with self._store.lock():
            run = self._store.find("pipeline.configuration", key)
            if run is None:
                behind = record["origin"] if self._configuration is None else origin(self._store.root)
                identity = {"pipeline.configuration": key, "mlflow.source.name": "pipeline", **behind, **self._process}
                title = record.get("title") or f"pipeline {key[:8]}"
                run = self._store.create(record["time"], title, {**tags, **identity})
                if self._configuration is not None:
                    self._store.end(run, "FINISHED")
            elif self._live:
                self._store.reopen(run)
            self._store.write(run, tags, flat(configuration))
            self._parent = self._store.get(run)
        if record["dataset"]:
            self._store.dataset(self._parent, record["dataset"])

    def _open_run(self, record: dict[str, Any]) -> None:
        name, stage = record["run"], self._open["stage"]
        parent_id = self._parent.info.run_id
        key = f"{stage}/{name}:{self._open['key']}"
        tags = {"pipeline.stage": stage, **self._open["tags"], **record["tags"], **self._process}
        with self._store.lock():
            run = self._store.find("pipeline.key", key)
            if run is None:
                identity = {"pipeline.key": key, "mlflow.parentRunId": parent_id, "mlflow.source.name": stage}
                title = stage if name == stage else f"{stage}/{name}"
                run = self._store.create(record["time"], title, {**tags, **self._open["origin"], **identity})
            complete = run.info.status == "FINISHED"
            if not complete:
                self._store.reopen(run)
        known = self._series.get(name)
        if known is None or known.ended:
            self._series[name] = _Series(run, complete)
        if not complete:
            self._store.write(run, tags, record["params"])
            if self._open["dataset"]:
                self._store.dataset(run, self._open["dataset"])
        if run.data.tags.get("mlflow.parentRunId") != parent_id:
            self._cached[name] = run.info.run_id
            self._store.write(self._parent, {f"pipeline.cached.{stage}": ",".join(self._cached.values())})

    def _points(self, block: int, step: int, values: list[float]) -> None:
        run, keys = self._blocks[block]
        series = self._series[run]
        if series.complete:
            return
        self._waiting += series.add(keys, step, values)
        if self._waiting >= POINTS_AT_A_TIME:
            for series in self._series.values():
                self._send(series)

    def _send(self, series: _Series) -> None:
        points = series.points()
        self._store.points(series.run, points, self._progress)
        series.sent += len(points)
        series.marks.update((key, step) for key, _, _, step in points)
        series.waiting.clear()
        self._waiting = 0
        if series.nonfinite:
            self._store.write(series.run, {f"nonfinite.{key}": text for key, text in series.nonfinite.items()})
            series.nonfinite.clear()

    def _end(self, series: _Series, status: Status, when: int) -> None:
        series.add_last()
        self._send(series)
        series.ended = True
        self._store.end(series.run, status, when)

    def _write_parent(self, record: dict[str, Any]) -> None:
        """Figures of the parent are replaced if they differ: the latest in time is the one MLflow shows."""
        run = self._store.get(self._parent)
        figures = {legal_key(name): value for name, value in record["metrics"].items()}
        infinite = {f"nonfinite.{key}": str(value) for key, value in figures.items() if math.isinf(value)}
        changed = [
            (key, float(value), now(), 0)
            for key, value in figures.items()
            if not math.isinf(value) and repr(run.data.metrics.get(key)) != repr(float(value))
        ]
        self._store.points(run, changed)
        self._store.write(run, record["tags"] | infinite)

    def _send_artifact(self, run: Any, record: dict[str, Any]) -> None:
        places = [copy_of(self._journal, record["sha256"], record["path"])]
        if self._workspace is not None:
            places.append(self._workspace / record["path"])
        for place in places:
            if place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == record["sha256"]:
                self._store.artifact(run, place, record["folder"])
                return
        self._notes.append(f"artifact {record['path']} of run {record['run'] or 'parent'} is gone or has changed")


def bring_in(store: Store, workspace: Path | None = None) -> Iterator[str]:
    """Replay the journals that nobody writes; those that are complete go, the others are marked as brought in."""
    mark = {"k": "uploaded", "to": store.uri}
    for path in sorted(folder(store.root).glob("*.jsonl")):
        with owned(path) as free:
            if not free:
                yield f"{path.name}: in use, left alone"
            elif last_record(path) != mark:
                replay = Replay(store, path, workspace)
                replay.advance()
                yield from (f"{path.name}: {line}" for line in replay.summary())
                if replay.closed == "FINISHED":
                    remove(path)
                else:
                    replay.abandon()
                    with path.open("a") as journal:
                        journal.write(json.dumps(mark) + "\n")
