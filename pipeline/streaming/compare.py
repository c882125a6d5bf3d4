"""AutoEmb along a log, against fixed dimensions, equal weights, a hand-made popularity rule and joint training."""

from __future__ import annotations

from collections.abc import Callable
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
    dims: tuple[int, ...]
    by: By
    level: Level = "bilevel"


def arms(dims: tuple[int, ...]) -> list[Arm]:
    """The models of the comparison, for these candidate dims."""
    return [
        *(Arm(f"fixed {d}", (d,), "equal") for d in dims),
        Arm("equal weights", dims, "equal"),
        Arm("popularity rule", dims, "rule"),
        Arm("joint", dims, "controllers", "single"),
        Arm("AutoEmb", dims, "controllers"),
    ]


class Comparison:
    """The comparison along one log.

    Args:
        log: in the order of time.
        task: defines the loss and the metrics.
        backbone: builds the backbone of each model.
        options: of the backbone.
        settings: candidate dims, windows and training.
    """

    def __init__(self, log: Log, task: Task, backbone: MakeBackbone, options: dict[str, Any], settings: Stream) -> None:
        self.log, self.task, self.settings = log, task, settings
        self._backbone, self._options = backbone, options
        self._windows = np.arange(len(log)) * settings.windows // len(log)
        self._groups = _groups(log)

    def run(self, arm: Arm, seed: int, passed: Callable[[int], object] = lambda rows: None) -> dict[str, Records]:
        """Train one arm along the log.

        Args:
            arm: to train.
            seed: of the weights.
            passed: receives the number of rows of every batch when it is done.

        Returns:
            The rows of every table, by the name of the model; AutoEmb is measured as two models. The tables are
            ``table`` (the whole log), ``windows`` (along it), ``popularity`` (by how often the row's value of a field
            was seen before) and ``dims`` (the expected dimension by popularity, after the last row).
        """
        log, settings = self.log, self.settings
        torch.manual_seed(seed)
        embedding = ByPopularity(log.schema, list(arm.dims), max(settings.dims), arm.by)
        model = Model(log.schema, embedding, self._backbone, self._options)
        try:
            outputs = prequential(
                model,
                self.task,
                log.ids,
                log.labels,
                batch_size=settings.batch_size,
                lr=settings.lr,
                arch_lr=settings.lr if arm.level == "single" else settings.arch_lr,
                level=arm.level,
                hard=arm.name == "AutoEmb",
                passed=passed,
            )
        except Diverged as error:
            raise Diverged(f"{arm.name}, seed {seed}: {error}") from error
        results = {}
        for kind, values in outputs.items():
            embedding.hard = kind == "hard"
            name = f"{arm.name}, hard" if embedding.hard else arm.name
            results[name] = self._records({"seed": seed, "model": name}, model, values)
        return results

    def _records(self, place: dict[str, Any], model: Model, outputs: np.ndarray) -> Records:
        def measured(inside: np.ndarray | None = None) -> dict[str, float]:
            return _measured(self.task, self.log.labels, outputs, inside)

        windows = range(self.settings.windows)
        return {
            "table": [{**place, "bytes": cost(model.embedding.packed()).bytes, **measured()}],
            "windows": [{**place, "window": window, **measured(self._windows == window)} for window in windows],
            "popularity": [
                {**place, "field": field, "seen": seen, **measured(inside)}
                for (field, seen), inside in self._groups.items()
            ],
            "dims": [{**place, **row} for row in _dims(self.log.schema, model)],
        }


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
