"""AutoEmb along a log, against fixed dimensions, equal weights, a hand-made popularity rule and joint training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.embeddings.cost import cost
from pipeline.embeddings.popularity import By, ByPopularity
from pipeline.models.model import MakeBackbone, Model
from pipeline.training.prequential import Level, prequential, seen_before
from pipeline.training.task import Task
from pipeline.training.weights import Diverged
from pipeline.workflow.params import Stream

SEEN = ((0, 5), (6, 20), (21, 100), (101, None))  # times that a value was seen before
Records = dict[str, list[dict[str, Any]]]  # the rows of each table, by its name


@dataclass(frozen=True)
class Log:
    """Rows in the order of time.

    Args:
        schema: F fields.
        ids: (n, S).
        labels: (n,).
    """

    schema: Schema
    ids: np.ndarray
    labels: np.ndarray

    def head(self, rows: int | None) -> Log:
        """The first ``rows`` rows; the whole log if None."""
        return Log(self.schema, self.ids[:rows], self.labels[:rows])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Arm:
    """One model of the comparison.

    Args:
        name: in tables.
        dims: its candidate dims. The width of the vectors is the largest dim of all arms.
        by: the source of the candidates' weights, see `ByPopularity`.
        level: how controllers are trained, see `prequential`.
    """

    name: str
    dims: list[int]
    by: By
    level: Level = "bilevel"


def arms(dims: list[int]) -> list[Arm]:
    """The models of the comparison, for these candidate dims."""
    return [
        *(Arm(f"fixed {d}", [d], "equal") for d in dims),
        Arm("equal weights", dims, "equal"),
        Arm("popularity rule", dims, "rule"),
        Arm("joint", dims, "controllers", "single"),
        Arm("AutoEmb", dims, "controllers"),
    ]


def compare(
    log: Log, task: Task, backbone: MakeBackbone, options: dict[str, Any], settings: Stream, seed: int
) -> Iterator[tuple[str, Records]]:
    """Train every arm along the log, and yield the name of each model with its rows of every table.

    Args:
        log: in the order of time.
        task: defines the loss and the metrics.
        backbone: builds the backbone of each model.
        options: of the backbone.
        settings: candidate dims, windows and training.
        seed: of the weights.

    Yields:
        The name of a model, and its rows by table: ``table`` (the whole log), ``windows`` (along it), ``popularity``
        (by how often the row's value of a field was seen before) and ``dims`` (the expected dimension by popularity,
        after the last row).
    """
    windows = np.arange(len(log)) * settings.windows // len(log)
    groups = _groups(log)
    for name, size, outputs, model in _passes(log, task, backbone, options, settings, seed):
        place = {"seed": seed, "model": name}
        records: Records = {"table": [{**place, "bytes": size, **_measured(task, log.labels, outputs)}]}
        records["windows"] = [
            {**place, "window": window, **_measured(task, log.labels, outputs, windows == window)}
            for window in range(settings.windows)
        ]
        records["popularity"] = [
            {**place, "field": field, "seen": seen, **_measured(task, log.labels, outputs, inside)}
            for (field, seen), inside in groups.items()
        ]
        records["dims"] = [{**place, **row} for row in _dims(log.schema, model)]
        yield name, records


def _passes(
    log: Log, task: Task, backbone: MakeBackbone, options: dict[str, Any], settings: Stream, seed: int
) -> Iterator[tuple[str, int, np.ndarray, Model]]:
    """Name, bytes after the last row, outputs (n,) and trained model of every model in the comparison."""
    dims = list(settings.dims)
    for arm in arms(dims):
        torch.manual_seed(seed)
        embedding = ByPopularity(log.schema, arm.dims, max(dims), arm.by)
        model = Model(log.schema, embedding, backbone, options)
        try:
            outputs = prequential(
                model,
                task,
                log.ids,
                log.labels,
                batch_size=settings.batch_size,
                lr=settings.lr,
                arch_lr=settings.lr if arm.level == "single" else settings.arch_lr,
                level=arm.level,
                hard=arm.name == "AutoEmb",
            )
        except Diverged as error:
            raise Diverged(f"{arm.name}, seed {seed}: {error}") from error
        for kind, values in outputs.items():
            embedding.hard = kind == "hard"
            name = f"{arm.name}, hard" if embedding.hard else arm.name
            yield name, cost(embedding.packed()).bytes, values, model


def _measured(
    task: Task, labels: np.ndarray, outputs: np.ndarray, inside: np.ndarray | None = None
) -> dict[str, float]:
    """The number of rows and the task's metrics on them; NaN if there are no rows."""
    if inside is not None:
        labels, outputs = labels[inside], outputs[inside]
    if not len(labels):
        return {"rows": 0, **dict.fromkeys(task.metrics, float("nan"))}
    return {"rows": len(labels), **task.measure(outputs, Split((np.empty((len(labels), 0)),), (labels,)))}


def _groups(log: Log) -> dict[tuple[str, str], np.ndarray]:
    """Masks (n,) of rows, by field and by how often the row's value was seen before.

    Only for the two single-valued fields with the most values.
    """
    schema = log.schema
    single = [f for f, field in enumerate(schema.fields) if field.width == 1]
    richest = sorted(single, key=lambda f: -schema.fields[f].cardinality)[:2]
    groups = {}
    for f in richest:
        before = seen_before(log.ids[:, int(schema.widths[:f].sum())])
        for least, most in SEEN:
            name = f"> {least - 1}" if most is None else f"{least} to {most}"
            groups[schema.names[f], name] = before >= least if most is None else (before >= least) & (before <= most)
    return groups


def _dims(schema: Schema, model: Model) -> list[dict[str, Any]]:
    """The expected dimension of a value, by field and by how often the value was seen, after the last row."""
    embedding = model.embedding
    if not isinstance(embedding, ByPopularity):
        raise TypeError(f"only ByPopularity has expected dimensions, got {type(embedding).__name__}")
    return [
        {"field": name, "seen": 2**bucket - 1, "expected_dim": float(value)}
        for name, row in zip(schema.names, embedding.expected_dims(), strict=True)
        for bucket, value in enumerate(row)
    ]
