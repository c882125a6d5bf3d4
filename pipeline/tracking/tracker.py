"""Experiment tracking: journal first, MLflow second.

Every record is first appended to a journal on disk, ``<root>/.pipeline/tracking/<stage>-<key>.jsonl``. A separate
process, the follower, uploads the journal to the MLflow store in batches. So neither MLflow's import nor its SQL takes
time from training, a store that is down costs one warning, and the runs of a killed stage are marked as KILLED.
`sync.synchronise` uploads journals that have not arrived, or that DVC restored without running a stage.

Runs have two levels. They are identified by their content, never by their time:

* the parent, one per configuration, by the tag ``pipeline.configuration``: a hash of all parameters;
* its children, one per stage and run name, by the tag ``pipeline.key``: the content key of the stage.

If another configuration has computed a child already, no second run is created: the parent gets the tag
``pipeline.cached.<stage>`` with the ids of such runs. A FINISHED child is complete and never written again.

Environment: ``MLFLOW_TRACKING_URI`` names a store other than ``<root>/mlflow.db``; with ``PIPELINE_TRACKING=journal``
only the journal is written, e.g. on nodes without a network, and `sync.synchronise` uploads it later.
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
from pipeline.tracking.place import EXPERIMENT, TAG_CHARACTERS, folder

LAST_WORD_SECONDS = 10.0  # that a failed stage waits for the store
MODEL_FILE_BYTES = 4_000_000  # a larger file of a model is not copied to the store

log = logging.getLogger("pipeline.tracking")


class Values(Protocol):
    """A one-dimensional array or tensor."""

    def tolist(self) -> Any: ...


class Tracker:
    """Records the runs of one stage, as a context manager.

    The end of the block ends the open runs. They are FINISHED, and the journal is copied to ``publish``. After an
    exception they are FAILED; after SystemExit (SIGTERM in a stage) and Ctrl-C they are KILLED. The journal then stays,
    and the next attempt of the same stage with the same key continues it.

    Args:
        root: the repository, which holds the journals and the store (not the copy of ``dvc exp run --temp``).
        stage: name of the stage.
        key: content key of the stage; equal keys mean interchangeable results.
        configuration: all parameters of the pipeline, nested; they identify the parent and become its params.
        tags: for the parent and every run of this stage, e.g. dataset, method, backbone.
        dataset: ``name``, ``digest`` (at most 36 characters) and perhaps ``source``, for MLflow's dataset lineage.
        publish: path of a copy of the journal if the stage succeeds, relative to the working directory.
        experiment: name of the experiment in MLflow.
        title: of a new parent.
        wait: whether to wait after the block until the store has the journal; for the last stage.
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
        """Open a run, or continue the run of this name in an interrupted journal.

        Args:
            name: unique within stage and key, e.g. ``searched/seed-1``; by default ``seed-<seed>``, or the stage's
                name.
            seed: of the run; recorded as a tag.
            params: of the run; nested dicts become names with dots.
            tags: of the run.
            started: start of the run in seconds since the epoch; now if left out.
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

    def has_finished(self, name: str) -> bool:
        """Whether an interrupted process with the same stage and key has ended the run of this name as finished."""
        return name in self._journal.finished

    def parent(
        self,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Iterable[str | Path] = (),
        description: str | None = None,
    ) -> None:
        """Record the final results of the configuration in its run.

        Args:
            metrics: that compare configurations.
            tags: of the run.
            artifacts: files to copy and upload.
            description: of the run, in Markdown; MLflow shows as much of it as a tag can hold, without pictures.
        Raises:
            FileNotFoundError: if an artifact does not exist.
        """
        described = {} if description is None else {"mlflow.note.content": shortened(description)}
        self._journal.append({"k": "parent", "metrics": dict(metrics or {}), "tags": {**(tags or {}), **described}})
        for path in artifacts:
            self._journal.artifact(None, path)

    def attach(self, stage: str, path: str | Path) -> None:
        """Record a file as an artifact of the runs of an earlier stage that have this configuration as their parent.

        Args:
            stage: name of the stage.
            path: the file.
        Raises:
            FileNotFoundError: if there is no such file.
        """
        self._journal.artifact(None, path, stage=stage)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = _status(error)
        try:
            self._close(status, error)
        except OSError:
            if error is None:  # otherwise the error of the block says more
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
        """Make sure that the journal gets uploaded; warn the user if it does not."""
        if self.wait:
            self._follower.wait(self._journal.path, None if status == "FINISHED" else LAST_WORD_SECONDS)
        else:
            self._follower.start()  # the follower may have been killed
        for warning in self._follower.warnings(self._journal.path):
            log.warning("%s", warning)


class Run:
    """One run of a stage, created by `Tracker.run`."""

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
        """Record metrics at a step.

        A tuple of names with values suits hundreds of series at every step: pass the same tuple each time. These values
        are written with 7 significant digits, the precision of float32; the values of a mapping keep all digits.

        The steps of a metric must increase. A step that does not exceed the last one is dropped, since a resumed
        training repeats steps.

        Args:
            step: the step.
            names: metrics by name, or the names alone.
            values: one per name if ``names`` is a tuple.
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

        Args:
            name: of the tag.
            value: of the tag.
        Raises:
            ValueError: if the run has ended.
        """
        self._check_open()
        self._journal.append({"k": "tags", "run": self.name, "tags": {name: str(value)}})

    def artifact(self, path: str | Path, folder: str = "", output: str | Path | None = None) -> None:
        """Record the current content of a small file as an artifact of the run.

        The file is copied beside the journal, since it may change or disappear before the upload. For a journal from
        DVC's cache the file is read from the workspace, if its checksum is unchanged.

        Args:
            path: the file.
            folder: folder among the artifacts of the run.
            output: final path of the file in the workspace; ``path`` if left out.
        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the run has ended.
        """
        self._check_open()
        self._journal.artifact(self.name, path, folder, output)

    def model(self, folder: str | Path, output: str | Path) -> None:
        """Record where a trained model lies (tag ``model``), and its files up to `MODEL_FILE_BYTES` as artifacts.

        Args:
            folder: the folder that holds the files of the model now.
            output: final path of the folder in the workspace.
        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if the run has ended.
        """
        self.tag("model", str(output))
        for path in sorted(Path(folder).iterdir()):
            if path.stat().st_size <= MODEL_FILE_BYTES:
                self.artifact(path, "model", Path(output) / path.name)

    def end(self, status: Status = "FINISHED") -> None:
        """End the run; a second call does nothing.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        if not self.ended:
            self._journal.append({"k": "end", "run": self.name, "status": status, "time": now()})
            self.ended = True

    def _check_open(self) -> None:
        if self.ended:
            raise ValueError(f"run {self.name!r} has ended; record before `end`, or open a run with another name")


def shortened(text: str) -> str:
    """The first blocks of a Markdown text that fit into a tag, without pictures: MLflow cannot show these there.

    Args:
        text: blocks that empty lines separate.
    """
    blocks = [block for block in text.strip().split("\n\n") if not re.fullmatch(r"\s*!\[.*\]\(.*\)\s*", block)]
    rest = "The whole report is among the artifacts."
    if len("\n\n".join(blocks)) <= TAG_CHARACTERS:
        return "\n\n".join(blocks)
    kept = ""
    for block in blocks:
        if len(kept) + len(block) + len(rest) + 2 > TAG_CHARACTERS:
            break
        kept += f"{block}\n\n"
    return kept + rest


def _status(error: BaseException | None) -> Status:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"
