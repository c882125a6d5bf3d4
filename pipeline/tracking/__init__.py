"""Experiment tracking: journal first, MLflow second.

Every record is appended to a journal on disk, ``<root>/.pipeline/tracking/<stage>-<key>.jsonl``, before anything
else happens to it. A separate process reads the journal and brings it to the MLflow store in batches, so that
neither MLflow's import nor its SQL takes time from training, a store that is down costs nothing but one warning,
and a killed stage is marked as such by the process that outlives it. `synchronise` replays journals that never
arrived, or that DVC restored from its cache without starting any process.

Runs have two levels and are found by what they are, never by when they ran:

* the parent, one per configuration, by tag ``pipeline.configuration``: a hash of all parameters;
* its children, one per stage and run name, by tag ``pipeline.key``: the stage's own content key.

A child that another configuration computed is not repeated: the parent gets ``pipeline.cached.<stage>`` instead,
with the ids of the runs. A child that is FINISHED is complete and never written again.

Environment: ``MLFLOW_TRACKING_URI`` names a store other than ``<root>/mlflow.db``; ``PIPELINE_TRACKING=journal``
keeps the journal only (nodes without a network), for `synchronise` later.

The rooms: `journal` writes and finds journals, `replay` brings one to the `store`, which alone knows MLflow;
`serve` does so in a process of its own, `uploader` is the stage's end of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pipeline.tracking import uploader
from pipeline.tracking.identity import configuration_key, is_dead, origin, this_process
from pipeline.tracking.journal import Journal, Status, flat, now
from pipeline.tracking.place import EXPERIMENT, StoreError, folder, meeting_mlflow, refusal, store_uri

__all__ = [
    "Run",
    "StoreError",
    "Tracker",
    "configuration_key",
    "is_dead",
    "run_ids",
    "synchronise",
    "this_process",
]

LAST_WORD_SECONDS = 10.0  # that a failing stage waits for the store


class Values(Protocol):
    """What ``tolist()`` turns into floats: a one-dimensional array or tensor."""

    def tolist(self) -> Any: ...


class Tracker:
    """Records what one stage does: a block that opens runs, and closes what is left open.

    Leaving the block normally ends its runs as FINISHED, copies the journal to ``publish`` and waits until the
    store has it all. An exception makes them FAILED; SystemExit (SIGTERM, in a stage) and Ctrl-C make them KILLED,
    and the journal stays where the same stage with the same key will continue it.

    Args:
        root: the repository (not the copy that ``dvc exp run --temp`` works in): journal, lock, store live there.
        stage: name of the stage.
        key: names the content that the stage computes; equal keys mean interchangeable results.
        configuration: all parameters of the pipeline, nested; they name the parent and become its params.
        tags: for the parent and every run of this stage, e.g. dataset, method, backbone.
        dataset: ``name`` and ``digest`` (at most 36 characters), perhaps ``source``; MLflow's dataset lineage.
        publish: where the whole journal goes when the stage succeeds, relative to the working directory.
        later: do not wait for the store, which takes seconds: the next stage's uploader brings the journal in, or,
            if none comes, a process that this one leaves behind.
    """

    def __init__(
        self,
        root: Path,
        stage: str,
        key: str,
        configuration: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        dataset: Mapping[str, str] | None = None,
        publish: str | Path | None = None,
        experiment: str = EXPERIMENT,
        later: bool = False,
        title: str | None = None,
    ) -> None:
        for word in (stage, key):
            if not re.fullmatch(r"[\w.\-]+", word):
                raise ValueError(f"stage and key name a file: letters, digits, '_', '.', '-' only, however: {word!r}")
        self.stage, self.key, self.publish = stage, key, publish
        self._root = Path(root).resolve()
        self._journal = Journal(folder(self._root) / f"{stage}-{key}.jsonl")
        self._runs: dict[str, Run] = {}
        self._journal.append(
            {
                "k": "open",
                "stage": stage,
                "key": key,
                "experiment": experiment,
                "configuration": configuration,
                "title": title,
                "tags": dict(tags or {}),
                "dataset": dict(dataset) if dataset else None,
                "origin": origin(self._root),
                "time": now(),
            }
        )
        self._uploader: uploader.Uploader | None = None
        uploaded = os.environ.get("PIPELINE_TRACKING") != "journal"
        self._left_behind = (self._journal.path, self._root, experiment) if uploaded and later else None
        if uploaded and not later:
            self._uploader = uploader.current()
            self._uploader.open(self._journal.path, self._root, experiment)

    def run(
        self,
        name: str | None = None,
        *,
        seed: int | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        started: float | None = None,
    ) -> Run:
        """Open a run, or continue the one of this name in a journal that was cut short.

        Args:
            name: unique within stage and key, e.g. ``searched/seed-1``; ``seed-<seed>`` or the stage's name if left
                out.
            params: nested dicts are flattened with dots.
            started: seconds since the epoch, if the run began before it could be named.
        Raises:
            ValueError: if this tracker has opened a run of that name before, or the name holds a quote.
        """
        name = name or (self.stage if seed is None else f"seed-{seed}")
        if name in self._runs or "'" in name:
            raise ValueError(
                f"stage {self.stage!r}: run name {name!r} must be new and without quotes; there are {list(self._runs)}"
            )
        tags = {**({} if seed is None else {"seed": str(seed)}), **(tags or {})}
        begun = now() if started is None else int(started * 1000)
        self._journal.append({"k": "run", "run": name, "params": flat(params or {}), "tags": tags, "time": begun})
        self._runs[name] = Run(self._journal, name)
        return self._runs[name]

    def parent(
        self,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Iterable[str | Path] = (),
    ) -> None:
        """Give the configuration's own run final figures: the row by which configurations are compared."""
        self._journal.append({"k": "parent", "metrics": dict(metrics or {}), "tags": dict(tags or {})})
        for path in artifacts:
            self._journal.artifact(None, path, "")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = _status(error)
        for run in self._runs.values():
            if error is not None and status != "FINISHED" and not run.ended:
                run.tag("pipeline.error", f"{type(error).__name__}: {error}")
            run.end(status)
        self._journal.append({"k": "close", "status": status, "time": now()})
        try:
            if self.publish is not None and status == "FINISHED":
                self._journal.copy_to(Path(self.publish))
        finally:
            arrived = False
            if self._uploader is not None:
                arrived = self._uploader.close(self._journal.path, None if status == "FINISHED" else LAST_WORD_SECONDS)
            if arrived and status == "FINISHED":
                self._journal.remove()
            self._journal.close()
            if self._left_behind:
                uploader.bring_in_later(*self._left_behind)


class Run:
    """One run of a stage. `Tracker.run` makes them."""

    def __init__(self, journal: Journal, name: str) -> None:
        self.name = name
        self.ended = False
        self._journal = journal
        self._marks = journal.marks.setdefault(name, {})
        self._blocks: dict[tuple[str, ...], int] = {}

    def metrics(
        self,
        step: int,
        names: Mapping[str, float] | tuple[str, ...],
        values: Sequence[float] | Values | None = None,
    ) -> None:
        """Record metrics at a step, as a mapping, or as a tuple of names and as many values.

        The second form is for hundreds of series at every step: keep one tuple and pass it again; values are
        written with 7 significant digits, all that single precision has. The first form keeps every digit.

        Steps of one metric only grow: a step not above its last one is a repeat, as after a resume, and dropped.

        Raises:
            ValueError: if the run has ended, or names and values differ in number.
        """
        self._check_open()
        exact = isinstance(names, Mapping)
        numbers: Sequence[float]
        if isinstance(names, Mapping):
            numbers = [float(value) for value in names.values()]
            names = tuple(names)
        elif isinstance(values, Sequence):
            numbers = values
        elif values is not None:
            numbers = values.tolist()
        else:
            raise ValueError(f"run {self.name!r}, step {step}: names without values")
        if len(numbers) != len(names):
            raise ValueError(f"run {self.name!r}, step {step}: {len(names)} names for {len(numbers)} values")
        mark = self._marks.get
        fresh = [place for place, name in enumerate(names) if mark(name, step - 1) < step]
        if len(fresh) < len(names):
            names, numbers = tuple(names[i] for i in fresh), [numbers[i] for i in fresh]
            if not names:
                return
        block = self._blocks.get(names)
        if block is None:
            block = self._blocks[names] = self._journal.declare(self.name, names)
        self._marks.update(dict.fromkeys(names, step))
        self._journal.points(block, int(step), numbers, exact)

    def tag(self, name: str, value: str) -> None:
        self._check_open()
        self._journal.append({"k": "tags", "run": self.name, "tags": {name: str(value)}})

    def artifact(self, path: str | Path, folder: str = "", output: str | Path | None = None) -> None:
        """Keep a small file with the run, as it is now, under ``folder`` among the run's artifacts.

        The file is copied beside the journal, since the workspace may change or go before the upload. After a
        restore from DVC's cache it is taken from the workspace again, if its checksum still agrees.

        Args:
            output: where the stage will have put it in the end, of the same name; ``path`` if left out.
        Raises:
            FileNotFoundError: if there is no such file.
        """
        self._check_open()
        self._journal.artifact(self.name, path, folder, output)

    def end(self, status: Status = "FINISHED") -> None:
        """End the run; a second call does nothing. Leaving the tracker's block ends what is open."""
        if not self.ended:
            self.ended = True
            self._journal.append({"k": "end", "run": self.name, "status": status, "time": now()})

    def _check_open(self) -> None:
        if self.ended:
            raise ValueError(f"run {self.name!r} has ended; record before `end`, or open a run of another name")


def synchronise(
    root: Path,
    configuration: Mapping[str, Any] | None = None,
    published: Iterable[str | Path] = (),
    workspace: Path | None = None,
    experiment: str = EXPERIMENT,
    complete: bool = True,
) -> list[str]:
    """Bring to the store what is on disk and missing there. Doing it twice changes nothing.

    Journals left in ``<root>/.pipeline/tracking`` keep the configuration they were written under; those in use by
    a living process are left alone. Published journals count for ``configuration``.

    Args:
        configuration: all parameters; needed with ``published``.
        published: journals of the stages as they stand in the workspace, in the order of the stages.
        workspace: what paths of artifacts are relative to; the working directory if left out.
        complete: whether ``published`` are all there can be: the parent is then FINISHED, though an earlier attempt
            may have been killed.
    Returns:
        One line per journal, and one per artifact that could not be found.
    Raises:
        StoreError: if the store does not answer; what has not arrived stays for the next time.
    """
    root, workspace = Path(root).resolve(), (workspace or Path()).resolve()
    journals = list(map(Path, published))
    if journals and configuration is None:
        raise ValueError("published journals need the configuration that they count for")
    lines: list[str] = []
    with meeting_mlflow():
        try:
            # here, and not above: these import MLflow
            from pipeline.tracking.replay import Replay, bring_in
            from pipeline.tracking.store import Store

            store = Store(store_uri(root), root, experiment)
            store.reap()
            lines += bring_in(store, workspace)
            for path in journals:
                replay = Replay(store, path, workspace, configuration)
                replay.advance()
                lines += [f"{path}: {line}" for line in replay.summary()]
                if complete and path == journals[-1]:
                    replay.end_parent("FINISHED")
        except (ValueError, FileNotFoundError):
            raise
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
            raise StoreError(refusal(store_uri(root), error)) from error
    return lines


def run_ids(root: Path, stage: str, keys: Iterable[str], experiment: str = EXPERIMENT) -> dict[tuple[str, str], str]:
    """MLflow's ids of the runs of a stage, by content key and name, as far as they have arrived.

    Raises:
        StoreError: if the store does not answer.
    """
    root = Path(root).resolve()
    found: dict[tuple[str, str], str] = {}
    with meeting_mlflow():
        try:
            # here, and not above: it imports MLflow
            from pipeline.tracking.store import Store

            store = Store(store_uri(root), root, experiment)
            for key in keys:
                for whole, run in store.keyed(key).items():
                    found[key, whole.removeprefix(f"{stage}/").removesuffix(f":{key}")] = run
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
            raise StoreError(refusal(store_uri(root), error)) from error
    return found


def _status(error: BaseException | None) -> Status:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"
