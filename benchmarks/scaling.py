"""Growth of the time of a plain step and a search step with values, fields, candidates and rows of a batch.

A batch looks up more distinct rows of a larger table, so the tables also give the time for 1,000 distinct rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import models, shapes, timing

BATCHES = 24  # through which the steps of a model cycle; the warm-up uses all of them
CANDIDATES = {2: (2, 32), 5: models.CANDIDATES, 10: (2, 4, 6, 8, 12, 16, 20, 24, 28, 32)}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its batches; the defaults are Criteo's."""

    values: int = shapes.VALUES
    fields: int = shapes.FIELDS
    batch: int = models.BATCH
    candidates: Sequence[int] = models.CANDIDATES


BASE = Shape()
AXES: dict[str, dict[int, Shape]] = {
    "values": {v: replace(BASE, values=v) for v in (100_000, 1_000_000, 10_000_000)},
    "fields": {f: replace(BASE, fields=f) for f in (10, 20, 39, 80)},
    "candidates": {n: replace(BASE, candidates=dims) for n, dims in CANDIDATES.items()},
    "batch": {b: replace(BASE, batch=b) for b in (500, 2000, 8000)},
}


def run(quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    axes = {axis: measure(members, rounds=12 if quick else 40) for axis, members in AXES.items()}
    return {"axes": axes, "targets": targets(axes)}


def measure(members: Mapping[int, Shape], rounds: int) -> list[dict[str, Any]]:
    """One entry for each member of an axis, ascending; ``growth`` is the ratio to the time of the first one.

    The plain and search steps of all members take turns; with ten million values this takes 9 GB of memory.
    """
    distinct, steps = {}, {}
    for at, shape in members.items():
        schema = shapes.criteo(shape.values, shape.fields)
        batches = shapes.draw_batches(schema, shape.batch, BATCHES)
        distinct[at] = shapes.distinct_rows(schema, batches)
        rows = models.split(batches)
        for kind in models.KINDS:
            module = models.training(kind, schema, rows, candidates=shape.candidates, batch_size=shape.batch)
            steps[f"{kind} {at}"] = models.weight_steps(module, batches)
    taken = timing.interleave(steps, rounds, warm_up=BATCHES)
    entries = []
    for at in members:
        entry: dict[str, Any] = {"at": at, "touched": distinct[at]}
        for kind in models.KINDS:
            own, first = taken[f"{kind} {at}"], taken[f"{kind} {min(members)}"]
            entry[kind] = timing.quartiles(own) | {"growth": timing.ratio(own, first)}
            entry[kind]["per 1,000 rows"] = 1e3 * entry[kind]["median"] / distinct[at]
        entry["ratio"] = timing.ratio(taken[f"search {at}"], taken[f"plain {at}"])
        entries.append(entry)
    return entries


def targets(axes: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    few, many = axes["values"][0], axes["values"][-1]
    return [
        timing.target(
            f"{kind} step, time at {many['at']:,} values x at {few['at']:,}", many[kind]["growth"], at_most=1.5
        )
        for kind in models.KINDS
    ]


def table(results: Mapping[str, Any]) -> str:
    parts = [
        "## Scaling",
        f"The shape is Criteo's where the tables do not say otherwise: {BASE.fields} fields, {BASE.values:,} values, "
        f"D = {models.DIM}, {len(BASE.candidates)} candidates, batch {BASE.batch:,}. The search step is one of the "
        "weights. Growth is the time divided by that of the first line.",
    ]
    columns = ("median", "growth", "per 1,000 rows")
    for axis, entries in results["axes"].items():
        head = [axis, "distinct rows of a batch"]
        for kind in models.KINDS:
            head += [f"{kind}, ms", "growth", "ms per 1,000 rows"]
        rows = []
        for entry in entries:
            times = [entry[kind][column] for kind in models.KINDS for column in columns]
            rows.append((entry["at"], entry["touched"], *times, entry["ratio"]))
        parts.append(timing.markdown((*head, "search x plain"), rows))
    return "\n\n".join(parts)
