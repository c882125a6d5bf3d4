"""Seconds and memory of coding full tables after training, at Criteo's shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models, shapes, timing
from benchmarks.alone import alone, peak_mib
from pipeline.coding.choice import Choices
from pipeline.data.schema import Schema
from pipeline.embeddings.coded import CodedTables, Moments, full_table, predictions
from pipeline.models.model import Model
from pipeline.training.calibration import ROWS, Calibrated

BUDGETS = (0.1, 0.05, 0.025, 0.015, 0.01)  # of the full tables' bytes
CALIBRATION, PREDICTION, CHOICE, ENCODING = "calibration", "transform and quantisers", "choice", "encoding"
SECONDS, TABLES = 180, 2  # the targets: of all steps together, and of memory in sizes of the full tables


def run(quick: bool) -> dict[str, Any]:
    values = 100_000 if quick else shapes.VALUES
    return results(alone(measure, values, ROWS // 10 if quick else ROWS))


def planted(schema: Schema, dim: int = models.DIM) -> Model:
    """DeepFM on full tables of random vectors; the spectrum of each field falls, some steeply and some hardly."""
    torch.manual_seed(0)
    model = models.allocated(schema, models.full(schema, dim), dim).eval()
    table = model.embedding.tables[str(dim)].weight.data  # type: ignore[index, union-attr]
    for rows in table.split(schema.cardinalities.tolist()):
        axes = torch.linalg.qr(torch.randn(dim, dim))[0]
        spectrum = 0.3 * torch.logspace(0, -3 * float(torch.rand(())), dim)
        rows.normal_()
        rows.copy_(rows @ (spectrum[:, None] * axes))
    return model


def measure(values: int, calibrated: int) -> dict[str, Any]:
    """Measure all steps once, in this process.

    Args:
        values: of all fields.
        calibrated: number of training rows.
    """
    schema = shapes.criteo(values)
    drawn = shapes.draw_batches(schema, models.BATCH, calibrated // models.BATCH)
    model, rows = planted(schema), models.split(drawn)
    model(drawn[0].ids)
    table = full_table(model.embedding)  # type: ignore[arg-type]
    steps, before = _Steps(), peak_mib()
    moments = steps.timed(CALIBRATION, lambda: Moments.of(Calibrated(models.CTR, model, rows)))
    predicted = steps.timed(PREDICTION, lambda: predictions(table, schema, moments))
    choices = {}
    for budget in BUDGETS:
        limit = int(budget * table.nbytes)
        name = f"{CHOICE}, {budget:.1%}"
        plans, gap = steps.timed(name, lambda limit=limit: Choices(predicted).within(limit))
        loss = sum(one.loss(plan.bits, plan.by_rows) for one, plan in zip(predicted, plans, strict=True))
        used = sum(int(plan.used.sum()) for plan in plans)
        choices[f"{budget:.1%}"] = {"predicted loss": loss, "components": used, "gap": gap}
    items = sum(one.components[..., 0].size for one in predicted)
    coded = in_place(table, schema, plans, moments)
    steps.timed(ENCODING, coded.finish)
    return {
        "shape": shapes.describe(schema, drawn, models.DIM),
        "rows": len(rows),
        "components of blocks": items,
        "steps": steps.taken,
        "choices": choices,
        "MiB": {"before": before, "table": schema.num_rows * models.DIM * 4 / 2**20},
    }


def in_place(table: Tensor, schema: Schema, plans: Any, moments: Moments) -> CodedTables:
    """Tables that are trained and not coded yet; they share the memory of ``table``, as after a training."""
    with torch.device("meta"):
        coded = CodedTables(schema, table.shape[1], table.shape[1], plans)
    for name, buffer in list(coded.named_buffers()):
        setattr(coded, name, torch.zeros_like(buffer, device=table.device))
    coded.table.weight = nn.Parameter(table)
    coded.moments = moments
    return coded


class _Steps:
    """Seconds of each step, and the peak memory of the process after it."""

    def __init__(self) -> None:
        self.taken: dict[str, dict[str, float]] = {}

    def timed(self, name: str, step: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = step()
        self.taken[name] = {"seconds": time.perf_counter() - began, "MiB": peak_mib()}
        return result


def results(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The measurements, and the targets."""
    seconds = sum(entry["seconds"] for entry in measured["steps"].values())
    memory = measured["MiB"]
    extra = max(entry["MiB"] for entry in measured["steps"].values()) - memory["before"]
    return {
        **measured,
        "seconds": seconds,
        "targets": [
            timing.target(f"coding, seconds with {len(BUDGETS)} budgets", seconds, at_most=SECONDS),
            timing.target(
                "coding, peak memory beside the full tables / theirs", extra / memory["table"], at_most=TABLES
            ),
        ],
    }


def table(results: Mapping[str, Any]) -> str:
    memory = results["MiB"]
    rows = [
        (name, entry["seconds"], entry["MiB"] - memory["before"], (entry["MiB"] - memory["before"]) / memory["table"])
        for name, entry in results["steps"].items()
    ]
    rows.append(("all", results["seconds"], "", ""))
    gap = max(choice["gap"] for choice in results["choices"].values())
    note = (
        f"{results['shape']} The tables have {memory['table']:,.0f} MiB and planted spectra, and "
        f"{results['rows']:,} rows calibrate them. The bits of {results['components of blocks']:,} components of "
        f"blocks are chosen; no other choice is better by more than a share of {gap:.1e} of the predicted loss. Memory "
        "is the peak so far of a process of its own, beside the tables, the model and the rows; the encoding is in "
        "place."
    )
    head = ("step", "s", "MiB beside the tables", "/ the tables")
    return "\n\n".join(["## Coding", note, timing.markdown(head, rows)])
