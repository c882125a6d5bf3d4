"""One experiment of an MLflow store: the only file that imports MLflow."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag

from pipeline.tracking.identity import is_dead
from pipeline.tracking.place import StoreError, folder

KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on runs and charts, not on prompts
METRICS_PER_BATCH, PARAMS_PER_BATCH, TAGS_PER_BATCH = 1000, 100, 100
KEY_CHARACTERS, PARAM_CHARACTERS, TAG_CHARACTERS = 250, 6000, 5000


Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step


class Store:
    """One experiment of an MLflow store. Made under the repository's lock: MLflow's migrations do not bear two."""

    def __init__(self, uri: str, root: Path, experiment: str) -> None:
        self.root = root
        self.uri = uri
        with self.lock():
            self._client = MlflowClient(uri)
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                # a server has artifact storage of its own; anything else would put them into the working directory
                place = None if uri.startswith("http") else (root / "mlartifacts").as_uri()
                self._experiment_id = self._client.create_experiment(experiment, artifact_location=place, tags=KIND)
            elif found.lifecycle_stage != "active":
                raise StoreError(f"experiment {experiment!r} is deleted; `mlflow experiments restore` brings it back")
            else:
                self._experiment_id = found.experiment_id

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with (folder(self.root) / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def reap(self) -> None:
        """Runs of ours that say RUNNING though their process is gone were killed."""
        for run in self._client.search_runs([self._experiment_id], "attributes.status = 'RUNNING'", max_results=1000):
            if is_dead(run.data.tags):
                self.end(run, "KILLED")

    def find(self, tag: str, value: str) -> Any:
        """The run with this tag: a finished one before others, the oldest first; None if there is none."""
        runs = self._client.search_runs([self._experiment_id], f"tags.`{tag}` = '{value}'", order_by=["start_time ASC"])
        return next((run for run in runs if run.info.status == "FINISHED"), runs[0] if runs else None)

    def keyed(self, key: str) -> dict[str, str]:
        """Ids of all runs whose stage computed this content, by the whole of their ``pipeline.key``."""
        wanted = f"tags.`pipeline.key` LIKE '%:{key}'"
        runs = self._client.search_runs([self._experiment_id], wanted, max_results=5000)
        return {run.data.tags["pipeline.key"]: run.info.run_id for run in runs}

    def create(self, start: int, name: str, tags: Mapping[str, str]) -> Any:
        return self._client.create_run(self._experiment_id, start_time=start, run_name=name, tags=_legal_tags(tags))

    def get(self, run: Any) -> Any:
        """The run as it is now."""
        return self._client.get_run(run.info.run_id)

    def reopen(self, run: Any) -> None:
        if run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")

    def end(self, run: Any, status: str, when: int | None = None) -> None:
        self._client.set_terminated(run.info.run_id, status, end_time=when)

    def write(self, run: Any, tags: Mapping[str, str], params: Mapping[str, str] | None = None) -> None:
        """Set tags, and the params that the run does not have: MLflow refuses a param that changes."""
        run_id = run.info.run_id
        new_tags = [RunTag(*item) for item in _legal_tags(tags).items() if run.data.tags.get(item[0]) != item[1]]
        legal = {legal_key(name): _legal_param(value) for name, value in (params or {}).items()}
        new_params = [Param(*item) for item in legal.items() if item[0] not in run.data.params]
        for part in _parts(new_tags, TAGS_PER_BATCH):
            self._client.log_batch(run_id, tags=part)
        for part in _parts(new_params, PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=part)

    def untag(self, run: Any, name: str) -> None:
        if name in run.data.tags:
            self._client.delete_tag(run.info.run_id, name)

    def points(self, run: Any, points: list[Point], progress: Callable[[int], None] = lambda left: None) -> None:
        """Store metrics; batches of few series each are the cheapest, so give the points series by series.

        Args:
            progress: is told before every batch how many points are left.
        """
        left = len(points)
        for part in _parts(points, METRICS_PER_BATCH):
            progress(left)
            left -= len(part)
            self._client.log_batch(run.info.run_id, metrics=[Metric(*point) for point in part])

    def artifact(self, run: Any, path: Path, folder: str) -> None:
        self._client.log_artifact(run.info.run_id, str(path), folder or None)

    def dataset(self, run: Any, dataset: Mapping[str, str]) -> None:
        """Give a run its data set, unless it has one of the same digest."""
        source = json.dumps({"uri": dataset.get("source", dataset["name"])})
        entity = Dataset(dataset["name"][:500], dataset["digest"][:36], "local", source)
        known = run.inputs.dataset_inputs if run.inputs else []
        if all(given.dataset.digest != entity.digest for given in known):
            self._client.log_inputs(run.info.run_id, [DatasetInput(entity, [])])


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def legal_key(name: str) -> str:
    """The name itself where MLflow takes it; else a name like it that no other name turns into."""
    key = re.sub(r"[^/\w.\- :]", "_", name)
    if posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == ".":
        key = "/".join(part if part.strip(".") else "_" for part in key.split("/"))
    if key != name or len(key) > KEY_CHARACTERS:
        key = f"{key[: KEY_CHARACTERS - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return key


def _legal_param(value: str) -> str:
    if len(value) <= PARAM_CHARACTERS:
        return value
    tail = f"... sha256:{hashlib.sha256(value.encode()).hexdigest()}"
    return value[: PARAM_CHARACTERS - len(tail)] + tail


def _legal_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {legal_key(name): str(value)[:TAG_CHARACTERS] for name, value in tags.items()}
