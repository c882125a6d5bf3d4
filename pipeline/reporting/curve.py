"""Quality against bytes: one trained full model, coded at many sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.allocation.budget import TooFewBytes
from pipeline.coding.choice import Plan
from pipeline.data.split import Part
from pipeline.embeddings.coded import CodedTables, in_order
from pipeline.embeddings.cost import cost, full_tables
from pipeline.experiment.code import Coder
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.measure import model_bytes
from pipeline.metrics.difference import spread
from pipeline.models.model import Model
from pipeline.reporting.deserved import deserved
from pipeline.workflow.progress import progress

SHARES = (0.005, 0.01, 0.015, 0.025, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)  # of the full tables' bytes
PARTS: tuple[Part, ...] = ("val", "test")

Objective = Callable[[Model], dict[str, float]]  # of each of `PARTS`


def curve(experiment: Experiment, models: Sequence[Model]) -> dict[str, Any]:
    """The curve of full models that are coded without further training.

    Args:
        experiment: of the models.
        models: trained full models, one for each seed.

    Returns:
        ``points``, by rising size: bytes, their share of the full tables' (``ratio``), bytes of the whole model, the
        objective on ``val`` and ``test`` over the seeds, and the seconds of a seed. ``full``: the objective of the full
        models. ``tolerance``: of the parameters. ``knee``: see `knee`. ``deserved``: see
        `pipeline.reporting.deserved.deserved`, at the knee; None if there is no knee.
    """
    task, full = experiment.task, full_tables(experiment.schema, experiment.dim).bytes
    splits = {part: experiment.data.split(part) for part in PARTS}

    def objective(model: Model) -> dict[str, float]:
        return {part: task.measure(task.predict(model, rows), rows)[task.objective] for part, rows in splits.items()}

    coders = [Coder(experiment, model) for model in models]
    points: list[dict[str, Any]] = []
    plans: list[list[list[Plan]]] = []  # of each point, seed and field
    for share in progress(SHARES, desc="curve", unit=" sizes"):
        try:
            point, chosen = _point(coders, int(share * full), full, objective)
        except TooFewBytes:
            continue
        if points and point["bytes"] <= points[-1]["bytes"]:  # all bits are in use already
            break
        points.append(point)
        plans.append(chosen)
    of_full = [objective(model) for model in models]
    record = {"points": points, "full": {part: spread([one[part] for one in of_full]) for part in PARTS}}
    tolerance = experiment.params.evaluate.tolerance
    place, schema = knee(record, tolerance), models[0].kept
    weights = [*in_order(coders[0].moments.weights, schema)]
    kept = None if place is None else deserved(schema.names, plans[place], weights)
    return record | {"tolerance": tolerance, "knee": place, "deserved": kept}


def _point(
    coders: Sequence[Coder], limit: int, full: int, objective: Objective
) -> tuple[dict[str, Any], list[list[Plan]]]:
    """All seeds at one size, and their plans.

    Raises:
        TooFewBytes: if the size is not possible for one of the seeds.
    """
    started = time.monotonic()
    found, sizes, wholes, plans = [], [], [], []
    for coder in coders:
        model = coder.coded(limit)
        assert isinstance(model.embedding, CodedTables)
        found.append(objective(model))
        sizes.append(cost(model.embedding.packed()).bytes)
        wholes.append(model_bytes(model))
        plans.append(model.embedding.plans)
    return {
        "bytes": round(float(np.mean(sizes))),
        "ratio": float(np.mean(sizes)) / full,
        "model_bytes": round(float(np.mean(wholes))),
        **{part: spread([one[part] for one in found]) for part in PARTS},
        "seconds": (time.monotonic() - started) / len(coders),
    }, plans


def knee(record: Mapping[str, Any], tolerance: float) -> int | None:
    """The place in ``points`` of the smallest size that costs less than ``tolerance`` of the mean objective on ``val``;
    None if there is none."""
    least = record["full"]["val"]["mean"] - tolerance
    within = [i for i, point in enumerate(record["points"]) if point["val"]["mean"] > least]
    return within[0] if within else None
