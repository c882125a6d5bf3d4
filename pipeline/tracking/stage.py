"""The trackers of stages and of other jobs, with the tags and the data set of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking.tracker import Tracker
from pipeline.workflow.params import Params
from pipeline.workflow.places import RUNS, root

DIGEST = 36  # longest digest of a data set that MLflow accepts, in characters


def stage_tracker(stage: str, key: str, raw_sha256: str, *, wait: bool = False) -> Tracker:
    """The tracker of a stage of the main job; it publishes the journal as ``artifacts/runs/<stage>.jsonl``.

    Args:
        stage: name of the stage.
        key: content key of the stage; see `pipeline.workflow.code.content_key`.
        raw_sha256: checksum of the raw table; MLflow identifies the data set by it.
        wait: whether to wait until the store has the whole journal; for the last stage.
    """
    params = Params.load()
    publish = RUNS / f"{stage}.jsonl"
    title = f"{_data(params)}, {params.method.name}, {params.backbone.name}"
    return _tracker(stage, key, raw_sha256, params, params.configuration(), title=title, publish=publish, wait=wait)


def _data(params: Params) -> str:
    """What the user calls the data: the name of the data set, or of the file if it is a table."""
    name = params.dataset.name
    return Path(params.dataset.path).name or name if name == "table" else name


def beside_tracker(
    stage: str,
    key: str,
    raw_sha256: str,
    params: Params,
    configuration: Mapping[str, Any],
    title: str,
    tags: Mapping[str, str] | None = None,
) -> Tracker:
    """The tracker of a job other than the main one, e.g. of a trial of a sweep. Its runs have their own parent.

    Args:
        stage: name of the job.
        key: content key of the job.
        raw_sha256: checksum of the raw table; MLflow identifies the data set by it.
        params: parameters of the job; they give data set, backbone and method.
        configuration: parameters that identify the parent.
        title: of the parent.
        tags: of the parent and its runs, in addition to data set, backbone, method and job.
    """
    return _tracker(stage, key, raw_sha256, params, configuration, {"job": stage, **(tags or {})}, title=title)


def _tracker(
    stage: str,
    key: str,
    raw_sha256: str,
    params: Params,
    configuration: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    **options: Any,
) -> Tracker:
    named = {"dataset": params.dataset.name, "backbone": params.backbone.name, "method": params.method.name}
    dataset = {"name": params.dataset.name, "digest": raw_sha256[:DIGEST], "source": params.dataset.path}
    return Tracker(root(), stage, key, configuration, tags={**named, **(tags or {})}, dataset=dataset, **options)
