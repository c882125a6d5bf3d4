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
from pipeline.lit import LitCTR
from pipeline.schema import Schema
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
    axes = {axis: _axis(members, rounds=12 if quick else 40) for axis, members in AXES.items()}
    few, many = min(AXES["values"]), max(AXES["values"])
    rows = {row["at"]: row for row in axes["values"]}
    return {
        "axes": axes,
        "targets": [
            timing.target(
                f"{kind} step, time at {many:,} values x at {few:,}",
                rows[many][kind]["median"] / rows[few][kind]["median"],
                at_most=1.5,
            )
            for kind in KINDS
        ],
    }


def _axis(members: dict[int, Shape], rounds: int) -> list[dict[str, Any]]:
    """One entry per member; members take turns, first all with plain steps, then all with the search's.

    So only one kind's tables are in memory: 4.3 GB where the values grow to ten million.
    """
    made = {}
    for at, shape in members.items():
        schema = shapes.criteo(shape.values, shape.fields)
        made[at] = schema, shapes.batches(schema, shape.batch, BATCHES)
    found: list[dict[str, Any]] = [{"at": at, "touched": shapes.touched(*made[at])} for at in members]
    for kind in KINDS:
        torch.manual_seed(0)
        steps = {str(at): _step(kind, shape, *made[at]) for at, shape in members.items()}
        taken = timing.interleave(steps, rounds, warm_up=BATCHES)
        del steps
        for entry in found:
            times = timing.spread(taken[str(entry["at"])])
            entry[kind] = times | {"per 1,000 rows": 1e3 * times["median"] / entry["touched"]}
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
        f"{len(BASE.candidates)} candidates, batch {BASE.batch:,}. Medians; a step of the search is one of the weights.",
    ]
    for axis, entries in results["axes"].items():
        head = (
            axis,
            "distinct rows of a batch",
            *(f"{k}{what}" for k in KINDS for what in (", ms", ", ms per 1,000 rows")),
        )
        rows = []
        for entry in entries:
            times = [entry[kind][key] for kind in KINDS for key in ("median", "per 1,000 rows")]
            rows.append((entry["at"], entry["touched"], *times, entry["search"]["median"] / entry["plain"]["median"]))
        parts.append(timing.markdown((*head, "search x plain"), rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(table(run(quick=True)))
