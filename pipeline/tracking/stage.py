"""The tracker of one stage: where its runs are recorded, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tracking.tracker import Tracker
from pipeline.workflow.params import Params
from pipeline.workflow.places import RUNS, root

DIGEST = 36  # characters of a data set's digest that MLflow takes


def stage_tracker(stage: str, key: str, raw_sha256: str, *, wait: bool = False) -> Tracker:
    """Runs of a stage of the main job go to MLflow through ``artifacts/runs/<stage>.jsonl``, which is its output.

    Args:
        key: names what the stage computes; see `pipeline.workflow.code.content_key`.
        raw_sha256: checksum of the raw table, by which MLflow tells data sets apart.
        wait: until the store has all of it; for the last stage.
    """
    params = Params.load()
    publish = RUNS / f"{stage}.jsonl"
    return _tracker(stage, key, raw_sha256, params, params.configuration(), publish=publish, wait=wait)


def beside_tracker(
    stage: str,
    key: str,
    raw_sha256: str,
    params: Params,
    configuration: Mapping[str, Any],
    title: str,
    tags: Mapping[str, str] | None = None,
) -> Tracker:
    """Runs of a job beside the main one, e.g. of a sweep's trial, under a parent of their own.

    Args:
        configuration: names the parent.
        title: of the parent.
        tags: of the parent and its runs, beside data set, backbone and method.
    """
    return _tracker(stage, key, raw_sha256, params, configuration, tags, title=title)


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
