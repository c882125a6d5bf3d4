"""Experiment tracking: journal first, MLflow second.

Every record is appended to a journal on disk, ``<root>/.pipeline/tracking/<stage>-<key>.jsonl``, before anything else
happens to it. A process of its own, the follower, brings it to the MLflow store in batches. So neither MLflow's import
nor its SQL takes time from training, a store that is down costs one warning, and a killed stage is marked as such.
`sync.synchronise` brings in journals that have not arrived, or that DVC restored without running a stage.

Runs have two levels. They are found by their content, never by their time:

* the parent, one per configuration, by the tag ``pipeline.configuration``: a hash of all parameters;
* its children, one per stage and run name, by the tag ``pipeline.key``: the content key of the stage.

A child that another configuration has computed is not repeated: the parent gets the tag ``pipeline.cached.<stage>``
instead, with the ids of those runs. A child that is FINISHED is complete and never written again.

Environment: ``MLFLOW_TRACKING_URI`` names a store other than ``<root>/mlflow.db``; with ``PIPELINE_TRACKING=journal``
the journal is all that is written, e.g. on nodes without a network, and `sync.synchronise` uploads it later.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pipeline.tracking.follow import Follower
from pipeline.tracking.identity import flat, origin, this_process
from pipeline.tracking.journal import Journal, Status, now
from pipeline.tracking.place import EXPERIMENT, folder

LAST_WORD_SECONDS = 10.0  # that a stage which fails waits for the store

log = logging.getLogger("pipeline.tracking")


class Values(Protocol):
    """What ``tolist()`` turns into floats: a one-dimensional array or tensor."""

    def tolist(self) -> Any: ...


class Tracker:
    """Records what one stage does: a block that opens runs, and ends those that are still open.

    After the block its runs are FINISHED, and the journal is copied to ``publish``. An exception makes them FAILED;
    SystemExit (SIGTERM, in a stage) and Ctrl-C make them KILLED, and the journal stays where the same stage with the
    same key will continue it.

    Args:
        root: the repository (not the copy that ``dvc exp run --temp`` works in): the journals and the store are there.
        stage: name of the stage.
        key: names the content that the stage computes; equal keys mean interchangeable results.
        configuration: all parameters of the pipeline, nested; they identify the parent and become its params.
        tags: for the parent and every run of this stage, e.g. dataset, method, backbone.
        dataset: ``name`` and ``digest`` (at most 36 characters), perhaps ``source``; MLflow's dataset lineage.
        publish: where the whole journal goes when the stage succeeds, relative to the working directory.
        experiment: in MLflow.
        title: of a new parent.
        wait: after the block, wait until the store has the journal: for the last stage.
    Raises:
        ValueError: if the stage or the key cannot be part of a file name.
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
        title: str | None = None,
        wait: bool = False,
    ) -> None:
        for word in (stage, key):
            if not re.fullmatch(r"[\w.\-]+", word):
                raise ValueError(f"stage and key may hold letters, digits, '_', '.' and '-' only, got {word!r}")
        root = Path(root).resolve()
        self.stage, self.key, self.publish, self.wait = stage, key, publish, wait
        self._runs: dict[str, Run] = {}
        self._follower = Follower(root, experiment)
        self._journal = Journal(folder(root) / f"{stage}-{key}.jsonl")
        self._journal.append(
            {
                "k": "open",
                "stage": stage,
                "key": key,
                "to": self._follower.destination,
                "configuration": configuration,
                "title": title,
                "tags": dict(tags or {}),
                "dataset": dict(dataset) if dataset else None,
                "origin": origin(root),
                "process": this_process(),
                "time": now(),
            }
        )
        self._is_followed = os.environ.get("PIPELINE_TRACKING") != "journal"
        if self._is_followed:
            self._follower.start()

    def run(
        self,
        name: str | None = None,
        *,
        seed: int | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        started: float | None = None,
    ) -> Run:
        """Open a run, or continue the one with this name in a journal that was cut short.

        Args:
            name: unique within stage and key, e.g. ``searched/seed-1``; by default ``seed-<seed>``, or the stage's
                name.
            params: nested dicts become names with dots.
            started: seconds since the epoch, if the run began before it could be named.
        Raises:
            ValueError: if this tracker has opened a run with that name before, or the name holds a quote.
        """
        name = name or (self.stage if seed is None else f"seed-{seed}")
        if name in self._runs or "'" in name:
            known = ", ".join(self._runs) or "none"
            raise ValueError(
                f"stage {self.stage!r}: the name of a run must be new and without quotes, got {name!r}; open: {known}"
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
        """Give the run of the configuration its final figures, by which configurations are compared."""
        self._journal.append({"k": "parent", "metrics": dict(metrics or {}), "tags": dict(tags or {})})
        for path in artifacts:
            self._journal.artifact(None, path, "")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = _status(error)
        try:
            self._close(status, error)
        except OSError:
            if error is None:  # otherwise what ended the block says more: perhaps that the journal cannot be written
                raise
        finally:
            self._journal.close()
            if self._is_followed:
                self._deliver(status)

    def _close(self, status: Status, error: BaseException | None) -> None:
        for run in self._runs.values():
            if status != "FINISHED" and not run.ended:
                run.tag("pipeline.error", f"{type(error).__name__}: {error}")
            run.end(status)
        self._journal.append({"k": "close", "status": status, "time": now()})
        if self.publish is not None and status == "FINISHED":
            self._journal.copy_to(Path(self.publish))

    def _deliver(self, status: Status) -> None:
        """See to it that the journal is brought in, and tell the user if it is not."""
        if self.wait:
            self._follower.wait(self._journal.path, None if status == "FINISHED" else LAST_WORD_SECONDS)
        else:
            self._follower.start()  # it may have been killed
        for warning in self._follower.warnings(self._journal.path):
            log.warning("%s", warning)


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

        The second form is for hundreds of series at every step: keep one tuple and pass it again. Its values are
        written with 7 significant digits, which is all that single precision has; the first form keeps every digit.

        The steps of a metric only grow. A step that is not above the last one is a repetition, as after a resume, and
        is dropped.

        Raises:
            ValueError: if the run has ended, or there are not as many values as names.
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
            raise ValueError(f"run {self.name!r}, step {step}: got {len(names)} names and {len(numbers)} values")
        mark = self._marks.get
        fresh = [place for place, name in enumerate(names) if mark(name, step - 1) < step]
        if len(fresh) < len(names):
            names, numbers = tuple(names[i] for i in fresh), [numbers[i] for i in fresh]
            if not names:
                return
        block = self._blocks.get(names)
        if block is None:
            block = self._blocks[names] = self._journal.declare(self.name, names)
        self._journal.points(block, int(step), numbers, exact)
        self._marks.update(dict.fromkeys(names, step))

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run.

        Raises:
            ValueError: if the run has ended.
        """
        self._check_open()
        self._journal.append({"k": "tags", "run": self.name, "tags": {name: str(value)}})

    def artifact(self, path: str | Path, folder: str = "", output: str | Path | None = None) -> None:
        """Keep a small file with the run, as it is now, under ``folder`` among the run's artifacts.

        The file is copied beside the journal, since it may change or go before the upload. After a restore from DVC's
        cache it is taken from the workspace, if it still has the same checksum.

        Args:
            output: where the stage will have put the file in the end, with the same name; ``path`` if left out.
        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the run has ended.
        """
        self._check_open()
        self._journal.artifact(self.name, path, folder, output)

    def end(self, status: Status = "FINISHED") -> None:
        """End the run; a second call does nothing. The end of the tracker's block ends what is open."""
        if not self.ended:
            self._journal.append({"k": "end", "run": self.name, "status": status, "time": now()})
            self.ended = True

    def _check_open(self) -> None:
        if self.ended:
            raise ValueError(f"run {self.name!r} has ended; record before `end`, or open a run with another name")


def _status(error: BaseException | None) -> Status:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"
