"""What a cell of a study on retrieval measures besides the task's metrics: groups of targets, references that learn no
table, histories that are served late, fields that are missing, and wrong edges of the graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from pipeline.data.encoded import VOCABULARY_FILE, Encoded
from pipeline.data.interactions import EVENT, HISTORY, ITEM, ITEM_KEYS_FILE, USER, USER_KEYS_FILE, Columns
from pipeline.data.schema import PADDING, UNKNOWN
from pipeline.data.split import Split
from pipeline.encoding.histories import AGE
from pipeline.encoding.vocabulary import read_vocabulary
from pipeline.experiment.experiment import Experiment
from pipeline.metrics.auc import auc
from pipeline.metrics.difference import encoded, sketch
from pipeline.models.retriever import AnyModel, Retriever
from pipeline.references.choose import results
from pipeline.sources.opening import opened
from pipeline.training.task import Task
from pipeline.workflow.params import Dataset

KEPT = ("all", "repeat", "new", "cold")  # groups with an interval; see `pipeline.metrics.ranking.by_group`
LATE = {"1 h": 3600, "24 h": 24 * 3600, "30 days": 30 * 24 * 3600}  # seconds
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 0.001, "s": 1, "min": 60}  # units of time that a data set may state


def by_group(task: Task, predictions: np.ndarray, split: Split) -> dict[str, dict[str, Any]]:
    """The metrics of each group in `KEPT`, with ``users``, their number, and ``sketch``, of their influence on the
    first metric. Empty for a task without groups."""
    influences = task.group_influence(predictions, split)
    groups: dict[str, dict[str, Any]] = {}
    for name, metrics in task.groups(predictions, split).items():
        if name in KEPT:
            influence = influences[name]
            groups[name] = {**metrics, "users": len(influence), "sketch": encoded(sketch(influence))}
    return groups


def references(
    experiment: Experiment, seeds: Sequence[int], record: Callable[[str, dict[str, float]], str]
) -> list[dict[str, Any]]:
    """The rows of all references, as `pipeline.studies.cell.run` has them, with the name in the place of the arm.

    A reference learns nothing that depends on a seed, so it has the same row for each seed. It has no tables, and thus
    no bytes.

    Args:
        experiment: on interactions.
        seeds: of the study.
        record: records the metrics of a reference by its name, and returns the name of the run.
    """
    task, data = experiment.task, experiment.data
    if data.interactions is None:
        raise ValueError("references need rows that are interactions; give their arms to cells of such data only")
    began, val, test = time.monotonic(), data.split("val"), data.split("test")
    chosen = results(experiment.training_rows(), val, test, seen_val=task.seen(val), seen_test=task.seen(test))
    seconds = (time.monotonic() - began) / len(chosen)  # of each in the mean, with the choice of its options
    rows = []
    for name, reference in chosen.items():
        metrics = task.measure(reference.top, test)
        influence = task.influence(reference.top, test)
        row = {
            **{"arm": name, "budget": None, "dims": {}, "metrics": metrics, "run": record(name, metrics)},
            **dict.fromkeys(("bytes", "of_full", "model_bytes", "table_params", "training_bytes")),
            **{"validation": reference.val[task.objective], "epochs": 0, "seconds": seconds, "search_seconds": None},
            **{"setting": 0, "options": dict(reference.options)},
            **{"rows": len(influence), "sketch": encoded(sketch(influence))},
            "groups": by_group(task, reference.top, test),
        }
        rows += [{"seed": seed, **row} for seed in seeds]
    return rows


def impaired(experiment: Experiment, model: AnyModel, test: Split) -> dict[str, float]:
    """The objective on ``test`` when a model is served less than it was trained on.

    ``no history``: the histories are empty. ``1 h late`` and so on: the latest events are missing, at least those of
    the last hour; ages have buckets, so up to twice as much is missing. ``without <field>``: the field is unknown for
    all items.

    Args:
        experiment: on interactions with histories.
        model: a trained tower model.
        test: the test rows.
    """
    data, task, shared = experiment.data, experiment.task, experiment.data.interactions
    if shared is None or not isinstance(model, Retriever) or model.is_graph or not shared.columns.history:
        return {}
    rows = np.concatenate(test.ids)

    def measured(changed: np.ndarray) -> float:
        split = replace(test, ids=(changed,), labels=(test.all_labels(),))
        return task.measure(task.predict(model, split), split)[task.objective]

    figures = {"no history": measured(_without(rows, shared.columns, np.ones((len(rows), 1), bool)))}
    ages = _buckets(data)
    for name, seconds in LATE.items() if ages is not None else ():
        units = seconds / SECONDS[data.facts["time_unit"]]
        young = ages < np.ceil(np.log2(1 + units))
        column = [field.name for field in data.schema.fields if field.role == EVENT].index(AGE)
        ids = shared.columns.of_events(rows)[:, :, column]
        figures[f"{name} late"] = measured(_without(rows, shared.columns, young[np.maximum(ids, UNKNOWN)]))
    figures |= {f"without {name}": value for name, value in _without_fields(model, measured, rows).items()}
    return figures


def _buckets(data: Encoded) -> np.ndarray | None:
    """(ids,) the bucket of each id of an event's age, -1 for the unknown one; None if the log does not state a unit of
    time. See `pipeline.encoding.histories.Histories.values`."""
    if data.facts.get("time_unit") not in SECONDS or AGE not in data.schema.names:
        return None
    values = read_vocabulary(data.folder / VOCABULARY_FILE)[AGE].cast(pa.int64()).to_numpy(zero_copy_only=False)
    return np.concatenate([[-1], values])


def _without(rows: np.ndarray, columns: Columns, gone: np.ndarray) -> np.ndarray:
    """A copy of rows (n, C) without the events of their histories where ``gone`` (n, H or 1); the others move up."""
    changed = rows.copy()
    history, events = columns.of_history(rows), columns.of_events(rows)
    kept = (history != PADDING) & ~gone
    order = np.argsort(~kept, axis=1, kind="stable")
    moved = np.take_along_axis(np.where(kept, history, PADDING), order, 1)
    details = np.take_along_axis(np.where(kept[..., None], events, PADDING), order[..., None], 1)
    changed[:, HISTORY:] = np.concatenate([moved, details.swapaxes(1, 2).reshape(len(rows), -1)], 1)
    return changed


def _without_fields(model: Retriever, measured: Callable[[np.ndarray], float], rows: np.ndarray) -> dict[str, float]:
    """The objective when a field that describes items is unknown for all of them, by its name; only if others stay."""
    own = model.kept.of_role(ITEM)
    if own is None or len(own) < 2:
        return {}
    figures, ids = {}, model.ids_of_item
    for name in own.names:
        missing = ids.clone()
        slots = own.slots_of([name])
        missing[:, slots[1:]] = PADDING
        missing[:, slots[:1]] = UNKNOWN
        model.ids_of_item = missing
        figures[name] = measured(rows)
    model.ids_of_item = ids
    return figures


@torch.no_grad()
def wrong_edges(dataset: Dataset, data: Encoded, model: AnyModel) -> dict[str, float]:
    """How well a trained graph model tells the edges that were added at random from the others, as AUC.

    Args:
        dataset: with the option ``added``, see `pipeline.datasets.interactions`; without it there is nothing to tell.
        data: encoded.
        model: trained on them.

    Returns:
        By score: ``residual``, the length of the difference of an edge's ends (`Graph.differences`); ``cosine``, minus
        the cosine of its ends; and ``dual`` for GTN, the mean size of what it clips. Empty without added edges.
    """
    given = dataset.options or {}
    if not given.get("added") or not isinstance(model, Retriever) or model.graph is None:
        return {}
    options = {name: value for name, value in given.items() if name != "added"}
    right = pa.Table.from_batches(opened(dataset.model_copy(update={"options": options})).batches)
    numbers = [
        _numbers(right[role], data.folder / file) for role, file in ((USER, USER_KEYS_FILE), (ITEM, ITEM_KEYS_FILE))
    ]
    edges, items = model.edges, len(model.ids_of_item)
    there = (numbers[0] >= 0) & (numbers[1] >= 0)
    wrong = ~np.isin(edges.users * items + edges.items, (numbers[0] * items + numbers[1])[there])
    before, graph = model.embedding(model.lookup.all(model.kept)), model.graph
    after = model.vectors()
    ends = after[graph.users], after[graph.items]
    scores = {
        "residual": graph.differences(after).norm(dim=1),
        "cosine": -torch.nn.functional.cosine_similarity(*ends, dim=1),
    }
    if hasattr(model.backbone, "strain"):
        scores["dual"] = model.backbone.strain(before, graph)  # type: ignore[operator]
    labels = wrong.astype(np.uint8)
    return {name: auc(labels, values.double().cpu().numpy()) for name, values in scores.items()}


def _numbers(keys: pa.ChunkedArray, file: Path) -> np.ndarray:
    """(n,) the number of each user or item in encoded data, by its raw key; -1 if it has none."""
    known = pq.read_table(file)
    index = pc.index_in(keys.cast(pa.string()), known["key"].combine_chunks())
    places = pc.fill_null(index, -1).to_numpy().astype(np.int64)
    return np.where(places >= 0, known["number"].to_numpy()[places], -1)
