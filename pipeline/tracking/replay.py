"""Uploads the records of one journal to the store.

Metrics in MLflow carry the timestamp ``start of the run + step`` milliseconds: every replay writes the same points.
MLflow gets a thinned series: every record up to number `EVERY_STEP`, then every second one up to twice that number,
then every fourth one up to four times that number, and so on; and always the last one. The journal holds all records.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking.identity import configuration_key, flat, is_dead, origin, this_process
from pipeline.tracking.journal import Points, Reader, Status, copy_of, now
from pipeline.tracking.place import masked
from pipeline.tracking.store import Point, Store, legal_key

EVERY_STEP = 1000  # records of a series before it is thinned; MLflow draws 320 points per curve
POINTS_AT_A_TIME = 50_000  # largest number of points in memory


class _Series:
    """The points of one run that wait for their upload."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.complete = self.was_complete = run.info.status == "FINISHED"  # a complete run is never written again
        self.parent: dict[str, str] = {}  # tags that name the parent, until the store has them
        self.ended = False
        self.ending: tuple[Status, int] | None = None  # status and time, until the store has them
        self.sent = 0
        self.waiting: dict[str, list[tuple[int, float]]] = {}
        self.nonfinite: dict[str, str] = {}
        self._skipped: dict[tuple[str, ...], tuple[int, list[float]]] = {}  # by thinning, unless they are the last
        self._records: dict[tuple[str, ...], int] = {}
        self._marks = {metric.key: metric.step for metric in run.data.to_proto().metrics}  # last step in the store

    def add(self, keys: tuple[str, ...], step: int, values: list[float]) -> int:
        """Add one line of the journal. Returns the number of its points, or 0 if thinning skips the line."""
        count = self._records[keys] = self._records.get(keys, -1) + 1
        if count >= EVERY_STEP and count % (1 << (count // EVERY_STEP).bit_length()):
            self._skipped[keys] = step, values
            return 0
        self._skipped.pop(keys, None)
        return self._wait(keys, step, values)

    def add_last(self) -> None:
        """Add the last record of each series, which thinning has skipped: the run has ended."""
        for keys, (step, values) in self._skipped.items():
            self._wait(keys, step, values)
        self._skipped.clear()

    def _wait(self, keys: tuple[str, ...], step: int, values: list[float]) -> int:
        for key, value in zip(keys, values, strict=True):
            if math.isinf(value):  # MLflow would store 1.8e308, which ruins every chart
                self.nonfinite.setdefault(key, f"{value} at step {step}")
            elif self._marks.get(key, step - 1) < step:
                self.waiting.setdefault(key, []).append((step, value))
        return len(keys)

    def take(self) -> list[Point]:
        """Remove and return the waiting points, sorted by series. They count as sent."""
        start = self.run.info.start_time
        points = [(key, value, start + step, step) for key, line in self.waiting.items() for step, value in line]
        self._marks.update((key, step) for key, _, _, step in points)
        self.waiting.clear()
        self.sent += len(points)
        return points


class Replay:
    """Uploads one journal to the store, as far as it has been written.

    `advance` writes all records except the ends of runs. `settle` writes those, after `Store.settle`, since other
    repositories rely on a FINISHED run. After an error, start a new replay: it reads from the store what is there.

    Args:
        store: the store.
        journal: path of the journal.
        workspace: where to look for an artifact if the journal has no copy of it.
        configuration: replaces the configuration in the journal, for a journal that DVC has restored.
        progress: called before each batch of points with the number of points left.
    """

    def __init__(
        self,
        store: Store,
        journal: Path,
        workspace: Path | None = None,
        configuration: Mapping[str, Any] | None = None,
        progress: Callable[[int], None] = lambda left: None,
    ) -> None:
        self.closed: Status | None = None
        self._store, self._journal, self._workspace = store, journal, workspace
        self._configuration = masked(configuration)
        self._restored = configuration is not None
        self._progress = progress
        self.reader = Reader(journal)
        self._process = this_process()
        self._open: dict[str, Any] = {}
        self._key = ""  # of the configuration
        self._parent: Any = None
        self._parent_ending: Status | None = None
        self._series: dict[str, _Series] = {}
        self._keys: dict[tuple[str, ...], tuple[str, ...]] = {}  # names of metrics -> their keys in MLflow
        self._cached: dict[str, str] = {}  # name -> id of runs that belong to another configuration
        self._waiting = 0
        self._notes: list[str] = []

    def advance(self) -> None:
        """Upload the records added to the journal since the last call, except the ends of runs.

        Raises:
            BadJournal: at a line that is not a record.
        """
        for record in self.reader:
            if isinstance(record, Points):
                self._points(record)
            else:
                self._record(record)
        for series in self._series.values():
            self._send(series)

    def settle(self) -> None:
        """End the runs whose end is in the journal. Call `Store.settle` first."""
        for series in self._series.values():
            self._store.write(series.run, series.parent)  # they may name a parent that is deleted
            if series.ending and not self._is_complete(series):
                self._store.end(series.run, *series.ending)
            series.parent, series.ending = {}, None
        if self._parent_ending:
            self.end_parent(self._parent_ending)
            self._parent_ending = None

    def abandon(self) -> None:
        """End the open runs as KILLED: the journal has no writer."""
        for series in self._series.values():
            if not series.ended:
                series.ended, series.ending = True, ("KILLED", now())
        if self._parent is not None and self.closed is None:
            self._parent_ending = "KILLED"
        self.settle()

    def end_parent(self, status: Status) -> None:
        """End the run of the configuration, unless another process works on it.

        A restored journal does not change a FINISHED run.

        Args:
            status: of the ended run.
        """
        run = self._store.get(self._parent)
        if not self._is_busy(run) and not (self._restored and run.info.status == "FINISHED"):
            self._store.end(run, status)

    def summary(self) -> Iterator[str]:
        """One line per run, and one per artifact that is missing or has changed."""
        for name, series in self._series.items():
            run_id = series.run.info.run_id
            if not series.was_complete:
                yield f"run {name} {run_id} uploaded, {series.sent} points"
            elif name in self._cached:
                yield f"run {name} {run_id} belongs to another configuration and is linked"
            else:
                yield f"run {name} {run_id} was complete already"
        yield from self._notes

    def _record(self, record: dict[str, Any]) -> None:
        kind, name = record["k"], record.get("run")
        series = self._series.get(str(name))
        if kind == "open":
            self._open_parent(record)
        elif kind == "run":
            self._open_run(record)
        elif kind == "parent":
            self._write_parent(record)
        elif kind == "close":
            self._close_parent(record)
        elif kind == "artifact" and name is None:
            stage = record.get("stage")
            for run in self._store.children(self._parent, stage) if stage else [self._parent]:
                self._send_artifact(run, record)
        elif series is not None and kind in ("tags", "artifact", "end") and not self._is_complete(series):
            if kind == "tags":
                self._store.write(series.run, record["tags"])
            elif kind == "artifact":
                self._send_artifact(series.run, record)
            else:
                series.add_last()
                self._send(series)
                series.ended, series.ending = True, (record["status"], record["time"])

    def _open_parent(self, record: dict[str, Any]) -> None:
        if self._open:  # an earlier attempt ends before the next one begins
            self._store.settle()
            self.settle()
        self._open, self.closed = record, None
        configuration = self._configuration if self._restored else masked(record["configuration"])
        key = self._key = configuration_key(configuration)
        self._process = this_process() if self._restored else record.get("process", this_process())
        author = {**(origin(self._store.root) if self._restored else record["origin"]), **self._process}
        title = record.get("title") or f"pipeline {key[:8]}"
        longer = f"{title}, {key[:8]}"  # if another configuration has the title
        identity = {**record["tags"], "mlflow.source.name": "pipeline", **author}
        run, new = self._store.obtain("pipeline.configuration", key, record["time"], title, identity, longer)
        tags = dict(record["tags"])
        if self._restored:
            if new:
                self._store.set_status(run, "SCHEDULED")  # until the journals of all stages are there
        elif not self._is_busy(run):
            self._store.set_status(run, "RUNNING")
            tags |= author
        self._store.write(run, tags, flat(configuration))
        self._parent = self._store.get(run)
        if record["dataset"]:
            self._store.dataset(self._parent, record["dataset"])

    def _close_parent(self, record: dict[str, Any]) -> None:
        self.closed = record["status"]
        if not self._cached:  # a link to runs of another configuration is out of date
            self._store.untag(self._parent, f"pipeline.cached.{self._open['stage']}")
        if not self._restored:
            self._parent_ending = record["status"]

    def _open_run(self, record: dict[str, Any]) -> None:
        name, stage, parent_id = record["run"], self._open["stage"], self._parent.info.run_id
        source = {"pipeline.stage": stage, "mlflow.source.name": stage, **self._open["origin"]}
        parent = {"pipeline.parent": self._key, "mlflow.parentRunId": parent_id}
        tags = {**self._open["tags"], **record["tags"], **self._process}
        title = stage if name == stage else f"{stage}/{name}"
        key = f"{stage}/{name}:{self._open['key']}"
        run, _ = self._store.obtain("pipeline.key", key, record["time"], title, {**source, **parent, **tags})
        series = self._series.get(name)
        if series is None or series.ended:
            series = self._series[name] = _Series(run)
        known = run.data.tags
        if known.get("mlflow.parentRunId") != parent_id and (
            series.complete or known.get("pipeline.parent") != self._key
        ):
            self._cached[name] = run.info.run_id
            self._store.write(self._parent, {f"pipeline.cached.{stage}": ",".join(self._cached.values())})
        if not series.complete:
            series.parent = {} if name in self._cached else parent
            self._store.set_status(run, "RUNNING")
            self._store.write(run, tags, record["params"])
            if self._open["dataset"]:
                self._store.dataset(run, self._open["dataset"])

    def _points(self, points: Points) -> None:
        series = self._series[points.run]
        if series.complete:
            return
        if points.names not in self._keys:
            self._keys[points.names] = tuple(map(legal_key, points.names))
        self._waiting += series.add(self._keys[points.names], points.step, points.values)
        if self._waiting >= POINTS_AT_A_TIME:
            for series in self._series.values():
                self._send(series)

    def _send(self, series: _Series) -> None:
        points, nonfinite = series.take(), series.nonfinite
        if (points or nonfinite) and not self._is_complete(series):
            self._store.points(series.run, points, self._progress)
            self._store.write(series.run, {f"nonfinite.{key}": text for key, text in nonfinite.items()})
        series.nonfinite = {}
        self._waiting = 0

    def _is_complete(self, series: _Series) -> bool:
        """Whether the run is FINISHED by now: another process with the same content may have ended it."""
        series.complete = series.complete or self._store.get(series.run).info.status == "FINISHED"
        return series.complete

    def _is_busy(self, run: Any) -> bool:
        """Whether a living process other than the journal's writer works on a run."""
        tags = run.data.tags
        return run.info.status == "RUNNING" and not self._process.items() <= tags.items() and not is_dead(tags)

    def _write_parent(self, record: dict[str, Any]) -> None:
        """Write the metrics of the parent that differ: MLflow shows the value with the latest timestamp."""
        run = self._store.get(self._parent)
        metrics = {legal_key(name): float(value) for name, value in record["metrics"].items()}
        infinite = {f"nonfinite.{key}": str(value) for key, value in metrics.items() if math.isinf(value)}
        changed = [
            (key, value, now(), 0)
            for key, value in metrics.items()
            if not math.isinf(value) and repr(run.data.metrics.get(key)) != repr(value)
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
        self._notes.append(f"artifact {record['path']} of run {record['run'] or 'parent'} is missing or has changed")
