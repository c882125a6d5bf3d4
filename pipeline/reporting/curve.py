"""Quality against bytes: one trained full model, coded at many sizes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.allocation.budget import TooFewBytes, in_bytes
from pipeline.coding.choice import Plan
from pipeline.data.split import Split
from pipeline.embeddings.coded import CodedTables, in_order
from pipeline.embeddings.cost import cost, full_tables
from pipeline.experiment.code import Coder
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.measure import model_bytes
from pipeline.models.retriever import AnyModel
from pipeline.reporting.deserved import deserved
from pipeline.reporting.forms import CODED, Form, quality
from pipeline.workflow.progress import progress

SHARES = (0.005, 0.01, 0.015, 0.025, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)  # of the full tables' bytes


@dataclass(frozen=True)
class Curve:
    """The curve of full models that are coded without further training.

    Args:
        record: for the report. ``points``, by rising size: the budget as a share of the full tables' bytes
            (``share``), bytes, their share (``ratio``), bytes of
            the whole model, the objective on ``val`` and ``test`` over the seeds, and the seconds of a seed. ``full``:
            the objective of the full models. ``tolerance``: of the parameters. ``knee``: see `knee`. ``deserved``: see
            `pipeline.reporting.deserved.deserved`, at the knee; None if there is no knee.
        at_knee: the coded models at the knee; None if there is no knee.
        at_size: the coded models at the size that was asked for; None if they cannot be so small.
    """

    record: dict[str, Any]
    at_knee: Form | None
    at_size: Form | None


def curve(experiment: Experiment, models: Sequence[AnyModel], full: Form, size: int) -> Curve:
    """Code full models at many sizes.

    Args:
        experiment: of the models.
        models: trained full models, one for each seed.
        full: the results of these models.
        size: one more size, in bytes, that is not a point of the curve.
    """
    splits = experiment.data.split("val"), experiment.data.split("test")
    tables = full_tables(experiment.schema, experiment.dim).bytes
    coders = [Coder(experiment, model) for model in models]
    tolerance = experiment.params.evaluate.tolerance
    record: dict[str, Any] = {"points": [], "full": full.spreads(), "tolerance": tolerance}
    place, at_knee, kept = None, None, None
    for share in progress(SHARES, desc="curve", unit=" sizes"):
        started = time.monotonic()
        try:
            form, plans = _coded(experiment, coders, share, splits)
        except TooFewBytes:
            continue
        if record["points"] and form.bytes <= record["points"][-1]["bytes"]:  # all bits are in use already
            break
        sizes = {
            "share": share,
            "bytes": form.bytes,
            "ratio": float(np.mean(form.sizes)) / tables,
            "model_bytes": form.model_bytes,
        }
        record["points"].append({**sizes, **form.spreads(), "seconds": (time.monotonic() - started) / len(coders)})
        if at_knee is None and (place := knee(record, tolerance)) is not None:
            weights = [*in_order(coders[0].moments.weights, models[0].kept)]
            at_knee, kept = form, deserved(models[0].kept.names, plans, weights)
    try:
        at_size, _ = _coded(experiment, coders, size, splits)
    except TooFewBytes:
        at_size = None
    return Curve(record | {"knee": place, "deserved": kept}, at_knee, at_size)


def _coded(
    experiment: Experiment, coders: Sequence[Coder], budget: float, splits: tuple[Split, Split]
) -> tuple[Form, list[list[Plan]]]:
    """The models of all seeds, coded within a budget, see `in_bytes`, and their plans by seed and field.

    Raises:
        TooFewBytes: if the size is not possible for one of the seeds.
    """
    limit = in_bytes(budget, full_tables(experiment.schema, experiment.dim).bytes)
    form, plans = Form("full", CODED, budget=budget, unit=experiment.task.unit), []
    for coder in coders:
        model = coder.coded(limit)
        assert isinstance(model.embedding, CodedTables)
        form.add(cost(model.embedding.packed()).bytes, model_bytes(model), quality(experiment.task, model, *splits))
        plans.append(model.embedding.plans)
    return form, plans


def knee(record: Mapping[str, Any], tolerance: float) -> int | None:
    """The place in ``points`` of the smallest size that costs less than ``tolerance`` of the mean objective on ``val``;
    None if there is none."""
    least = record["full"]["val"]["mean"] - tolerance
    within = [i for i, point in enumerate(record["points"]) if point["val"]["mean"] > least]
    return within[0] if within else None
