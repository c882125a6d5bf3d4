"""How the plain and the search step grow with values, fields, candidates and rows of a batch.

A batch touches more distinct rows of a larger table; what a row costs is therefore told beside what a step costs.

    python -m benchmarks.scaling
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from benchmarks import models, shapes, timing
from pipeline.data.schema import Schema
from pipeline.training.weights import LitCTR
from stages import _model

BATCHES = 24  # that a model's steps cycle through; all have been seen before steps count
CANDIDATES = {2: (2, 32), 5: models.CANDIDATES, 10: (2, 4, 6, 8, 12, 16, 20, 24, 28, 32)}
KINDS = ("plain", "search")


@dataclass(frozen=True)
class Shape:
    """What a model is made for; the defaults are Criteo's."""

    values: int = 1_086_810
    fields: int = 39
    batch: int = models.BATCH
    candidates: Sequence[int] = field(default=models.CANDIDATES)


BASE = Shape()
AXES: dict[str, dict[int, Shape]] = {
    "values": {v: replace(BASE, values=v) for v in (100_000, 1_000_000, 10_000_000)},
    "fields": {f: replace(BASE, fields=f) for f in (10, 20, 39, 80)},
    "candidates": {n: replace(BASE, candidates=dims) for n, dims in CANDIDATES.items()},
    "batch": {b: replace(BASE, batch=b) for b in (500, 2000, 8000)},
}


def run(quick: bool) -> dict[str, Any]:
    _model.tune()
    torch.manual_seed(0)
    axes = {axis: _axis(members, rounds=12 if quick else 40) for axis, members in AXES.items()}
    return {"axes": axes, "targets": _targets(axes)}


def _targets(axes: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    few, many = axes["values"][0], axes["values"][-1]
    return [
        timing.target(
            f"{kind} step, time at {many['at']:,} values x at {few['at']:,}", many[kind]["growth"], at_most=1.5
        )
        for kind in KINDS
    ]


def _axis(members: dict[int, Shape], rounds: int) -> list[dict[str, Any]]:
    """One entry per member, ascending; ``growth`` is the ratio to the first one's time within a round.

    All members' plain and search steps take turns; with ten million values that takes 9 GB.
    """
    touched, steps = {}, {}
    for at, shape in members.items():
        schema = shapes.criteo(shape.values, shape.fields)
        batches = shapes.batches(schema, shape.batch, BATCHES)
        touched[at] = shapes.touched(schema, batches)
        for kind in KINDS:
            steps[f"{kind} {at}"] = _step(kind, shape, schema, batches)
    taken = timing.interleave(steps, rounds, warm_up=BATCHES)
    found = []
    for at in members:
        entry: dict[str, Any] = {"at": at, "touched": touched[at]}
        for kind in KINDS:
            own, first = taken[f"{kind} {at}"], taken[f"{kind} {min(members)}"]
            entry[kind] = timing.spread(own) | {
                "growth": timing.ratio(own, first),
                "per 1,000 rows": 1e3 * float(np.median(own)) / touched[at],
            }
        entry["ratio"] = timing.ratio(taken[f"search {at}"], taken[f"plain {at}"])
        found.append(entry)
    return found


def _step(
    kind: str, shape: Shape, schema: Schema, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> Callable[[int], None]:
    rows = models.split(batches)
    module: LitCTR
    if kind == "plain":
        module = models.plain(schema, rows)
    else:
        module = models.searched(schema, rows, candidates=shape.candidates, batch_size=shape.batch)
    optimizers = module.configure_optimizers()
    return lambda i: module.weight_step(batches[i % len(batches)], optimizers)


def table(results: dict[str, Any]) -> str:
    parts = [
        "## Scaling",
        f"Criteo's shape where nothing else is said: {BASE.fields} fields, {BASE.values:,} values, D = {models.DIM}, "
        f"{len(BASE.candidates)} candidates, batch {BASE.batch:,}. The search's step is one of the weights; growth is "
        "to the first line.",
    ]
    columns = ("median", "growth", "per 1,000 rows")
    for axis, entries in results["axes"].items():
        head = [axis, "distinct rows of a batch"]
        for kind in KINDS:
            head += [f"{kind}, ms", "growth", "ms per 1,000 rows"]
        rows = []
        for entry in entries:
            times = [entry[kind][column] for kind in KINDS for column in columns]
            rows.append((entry["at"], entry["touched"], *times, entry["ratio"]))
        parts.append(timing.markdown((*head, "search x plain"), rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(table(run(quick=True)))
