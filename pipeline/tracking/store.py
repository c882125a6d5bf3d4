"""One experiment of an MLflow store. Only this file and `pyfunc` import MLflow."""

from __future__ import annotations

import contextlib
import hashlib
import json
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking.identity import is_dead
from pipeline.tracking.place import TAG_CHARACTERS, StoreError, locked, masked, store_uri

KIND = {"mlflow.experimentKind": "custom_model_development"}  # not GenAI: MLflow then opens on the runs
METRICS_PER_BATCH, PARAMS_PER_BATCH, TAGS_PER_BATCH = 1000, 100, 100
KEY_CHARACTERS, PARAM_CHARACTERS = 250, 6000
SETTLE_SECONDS = 1.0  # after which a run created by another repository is visible
ATTEMPTS = 5

Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step


class Superseded(Exception):
    """Another repository created the same run first, and its run counts; the caller must repeat its work."""


class Store:
    """One experiment of an MLflow store.

    Repositories that share a store may look for the same run at the same time, find none, and create two. A lock in
    the folder of an SQLite database prevents this. A server has no such lock: each repository looks again in `settle`,
    `SETTLE_SECONDS` after it obtained the run, when both runs are visible. All choose the same run, and the creator of
    the other one deletes it. A run that takes longer than `SETTLE_SECONDS` to create is deleted at once, since other
    repositories may have looked too early to see it.

    Args:
        root: the repository.
        experiment: name of the experiment in MLflow; created if it does not exist.
    Raises:
        StoreError: if the experiment has been deleted, or the folder of the database does not exist.
    """

    def __init__(self, root: Path, experiment: str) -> None:
        # not at the top: the import takes seconds, and the process of a stage must not pay for it
        from mlflow import MlflowClient, MlflowException, entities

        uri = store_uri(root)
        database = re.fullmatch(r"sqlite:///(/[^?]*)(\?.*)?", uri)
        self.root = root
        self._entities = entities
        self._lockable = database is not None
        self._place = Path(database[1]).resolve().parent if database else root
        self._unsettled: dict[tuple[str, str], tuple[str, bool, float]] = {}  # tag, value -> run id, new, time
        if not self._place.is_dir():
            raise StoreError(f"the folder of the database does not exist: {self._place}")
        with locked(self._place, "store"):  # two processes cannot migrate one database
            self._client = MlflowClient(uri)
            known = self._client.get_experiment_by_name(experiment)
            if known is None:
                # a server has its own artifact storage; for a database the default would be the working directory
                place = None if uri.startswith("http") else (root / "mlartifacts").as_uri()
                try:
                    new = self._client.create_experiment(experiment, artifact_location=place, tags=KIND)
                    known = self._client.get_experiment(new)
                except MlflowException:  # another repository may have created it a moment ago
                    known = self._client.get_experiment_by_name(experiment)
                    if known is None:
                        raise
            if known.lifecycle_stage != "active":
                raise StoreError(f"experiment {experiment!r} is deleted; `mlflow experiments restore` restores it")
            self._experiment_id = known.experiment_id

    def check(self) -> None:
        """Make sure that the store answers.

        Raises:
            Exception: of MLflow, if it does not.
        """
        self._client.get_experiment(self._experiment_id)

    def reap(self) -> None:
        """End as KILLED the runs that are RUNNING although their process has ended."""
        for run in self._client.search_runs([self._experiment_id], "attributes.status = 'RUNNING'", max_results=1000):
            if is_dead(run.data.tags):
                self.end(run, "KILLED")

    def share_view(self, name: str, state: Mapping[str, Any]) -> str:
        """Save a view of the runs table for links that name it. Returns the id of the experiment.

        Args:
            name: of the view.
            state: what the page shows, as MLflow's button "Share" writes it.
        """
        for tag, value in {**KIND, f"mlflow.sharedViewState.{name}": json.dumps(state)}.items():
            self._client.set_experiment_tag(self._experiment_id, tag, value)
        return str(self._experiment_id)

    def newest(self, stage: str) -> tuple[str, list[str]] | None:
        """Id and names of the metrics of the newest run of a stage; None if there is no run.

        Args:
            stage: its name.
        """
        wanted, order = f"tags.`pipeline.stage` = '{stage}'", ["attributes.start_time DESC"]
        runs = self._client.search_runs([self._experiment_id], wanted, max_results=1, order_by=order)
        return (runs[0].info.run_id, list(runs[0].data.metrics)) if runs else None

    def keyed(self, key: str) -> dict[str, str]:
        """Ids of the runs with this content key, by their full ``pipeline.key``.

        Args:
            key: content key of a stage.
        """
        wanted = f"tags.`pipeline.key` LIKE '%:{key}'"
        runs = self._client.search_runs([self._experiment_id], wanted, max_results=5000)
        return {run.data.tags["pipeline.key"]: run.info.run_id for run in runs}

    def obtain(
        self, tag: str, value: str, start: int, name: str, tags: Mapping[str, str], instead: str | None = None
    ) -> tuple[Any, bool]:
        """Find the run with this tag, or create it. Returns the run and whether it is new.

        Args:
            tag: name of the tag.
            value: of the tag.
            start: of a new run, in milliseconds since the epoch.
            name: of a new run.
            tags: further tags of a new run.
            instead: name of a new run if there is another one called ``name``; None: names may be equal.
        Raises:
            StoreError: if the store is too slow to create a run.
        """
        identity = _legal_tags({**tags, tag: value})
        for _ in range(ATTEMPTS):
            with locked(self._place, "store"):
                began = time.monotonic()
                known = self._runs_with(tag, value)
                if not known and instead is not None and self._is_taken(masked(name)):
                    name = instead
                run = known[0] if known else self._client.create_run(self._experiment_id, start, identity, masked(name))
                ended = time.monotonic()
            if self._lockable or run.info.status == "FINISHED":
                return run, not known
            if known or ended - began < SETTLE_SECONDS:
                self._unsettled.setdefault((tag, value), (run.info.run_id, not known, ended))
                return run, not known
            self._client.delete_run(run.info.run_id)
        raise StoreError(f"the store takes more than {SETTLE_SECONDS:g} s to create a run; try again later")

    def settle(self) -> None:
        """Make sure that the runs from `obtain` are those that all repositories use.

        Raises:
            Superseded: if another run is used instead of one of them, which is deleted if this store created it.
        """
        latest = max((ended for _, _, ended in self._unsettled.values()), default=-SETTLE_SECONDS)
        time.sleep(max(0.0, latest + SETTLE_SECONDS - time.monotonic()))
        superseded = []
        while self._unsettled:
            (tag, value), (run_id, new, _) = self._unsettled.popitem()
            first, *others = [run.info.run_id for run in self._runs_with(tag, value)] or [""]
            if first != run_id:
                superseded.append(value)
                if new and run_id in others:
                    self._client.delete_run(run_id)
        if superseded:
            raise Superseded(", ".join(superseded))

    def _runs_with(self, tag: str, value: str) -> list[Any]:
        """All runs with this tag, in the same order for all repositories: FINISHED ones first, then by age."""
        runs = self._client.search_runs([self._experiment_id], f"tags.`{tag}` = '{value}'")
        return sorted(runs, key=lambda run: (run.info.status != "FINISHED", run.info.start_time, run.info.run_id))

    def _is_taken(self, name: str) -> bool:
        """Whether a run has this name, or one that differs in a quote, which a filter cannot hold."""
        like = name.replace("'", "_")
        wanted = f"tags.`mlflow.runName` LIKE '{like}'"
        return bool(self._client.search_runs([self._experiment_id], wanted, max_results=1))

    def children(self, parent: Any, stage: str) -> list[Any]:
        """The runs of a stage under a parent."""
        wanted = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' AND tags.`pipeline.stage` = '{stage}'"
        return list(self._client.search_runs([self._experiment_id], wanted))

    def get(self, run: Any) -> Any:
        """The current state of a run in the store."""
        return self._client.get_run(run.info.run_id)

    def set_status(self, run: Any, status: str) -> None:
        """Change the status of a run without ending it."""
        if run.info.status != status:
            self._client.update_run(run.info.run_id, status=status)

    def end(self, run: Any, status: str, when: int | None = None) -> None:
        """End a run.

        Args:
            run: the run.
            status: FINISHED, FAILED or KILLED.
            when: time of the end in milliseconds since the epoch; now if left out.
        """
        self._client.set_terminated(run.info.run_id, status, end_time=when)

    def write(self, run: Any, tags: Mapping[str, str], params: Mapping[str, str] | None = None) -> None:
        """Set tags and params. Existing params keep their values, since MLflow refuses to change them.

        Args:
            run: the run; its tags and params are those already in the store.
            tags: of the run.
            params: of the run.
        """
        run_id = run.info.run_id
        legal_tags = _legal_tags(tags).items()
        new_tags = [self._entities.RunTag(*item) for item in legal_tags if run.data.tags.get(item[0]) != item[1]]
        legal_params = {legal_key(name): _legal_param(value) for name, value in (params or {}).items()}.items()
        new_params = [self._entities.Param(*item) for item in legal_params if item[0] not in run.data.params]
        for part in _parts(new_tags, TAGS_PER_BATCH):
            self._client.log_batch(run_id, tags=part)
        for part in _parts(new_params, PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=part)

    def untag(self, run: Any, name: str) -> None:
        """Remove a tag, if the run has it."""
        if name in run.data.tags:
            self._client.delete_tag(run.info.run_id, name)

    def points(self, run: Any, points: list[Point], progress: Callable[[int], None] = lambda left: None) -> None:
        """Store metrics in batches.

        Args:
            run: the run.
            points: sorted by series, since a batch of few series is cheaper.
            progress: called before each batch with the number of points left.
        """
        left = len(points)
        for part in _parts(points, METRICS_PER_BATCH):
            progress(left)
            left -= len(part)
            self._client.log_batch(run.info.run_id, metrics=[self._entities.Metric(*point) for point in part])

    def artifact(self, run: Any, path: Path, folder: str) -> None:
        """Upload a file as an artifact of a run.

        Args:
            run: the run.
            path: the file.
            folder: folder among the artifacts; "" for the top.
        """
        self._client.log_artifact(run.info.run_id, str(path), folder or None)

    def register(self, folder: Path, name: str, about: str) -> str:
        """Upload an MLflow model as the next version of a registered model, which is created if it does not exist.

        Args:
            folder: that `pipeline.tracking.pyfunc.write_pyfunc` wrote.
            name: of the registered model.
            about: description of the version.

        Returns:
            The version.
        """
        from mlflow import MlflowException

        run = self._client.create_run(self._experiment_id, run_name=f"model {name}")
        try:
            self._client.log_artifacts(run.info.run_id, str(folder), "model")
        except Exception:
            self.end(run, "FAILED")
            raise
        self.end(run, "FINISHED")
        with contextlib.suppress(MlflowException):  # it exists
            self._client.create_registered_model(name)
        source = f"{run.info.artifact_uri}/model"
        made = self._client.create_model_version(name, source, run.info.run_id, description=about)
        return str(made.version)

    def dataset(self, run: Any, dataset: Mapping[str, str]) -> None:
        """Record the data set of a run, unless the run has one with the same digest.

        Args:
            run: the run.
            dataset: ``name``, ``digest`` and perhaps ``source``; see `tracker.Tracker`.
        """
        source = json.dumps({"uri": masked(dataset.get("source", dataset["name"]))})
        entity = self._entities.Dataset(dataset["name"][:500], dataset["digest"][:36], "local", source)
        known = run.inputs.dataset_inputs if run.inputs else []
        if all(item.dataset.digest != entity.digest for item in known):
            self._client.log_inputs(run.info.run_id, [self._entities.DatasetInput(entity, [])])


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def legal_key(name: str) -> str:
    """The name itself if MLflow accepts it; otherwise a similar, unique key that ends in a hash of the name."""
    key = re.sub(r"[^/\w.\- :]", "_", name)
    if posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == ".":
        key = "/".join(part if part.strip(".") else "_" for part in key.split("/"))
    if key != name or len(key) > KEY_CHARACTERS:
        key = f"{key[: KEY_CHARACTERS - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return key


def _legal_param(value: str) -> str:
    value = masked(value)
    if len(value) <= PARAM_CHARACTERS:
        return value
    tail = f"... sha256:{hashlib.sha256(value.encode()).hexdigest()}"
    return value[: PARAM_CHARACTERS - len(tail)] + tail


def _legal_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {legal_key(name): masked(str(value))[:TAG_CHARACTERS] for name, value in tags.items()}
