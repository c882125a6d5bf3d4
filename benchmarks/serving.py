"""The savings of fewer dimensions and of coding in serving: time of a request, bytes, resident memory of a process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks import coding, models, shapes, timing
from benchmarks.alone import alone
from pipeline.allocation.allocation import Allocation
from pipeline.coding.choice import choose
from pipeline.data.batches import Batch
from pipeline.data.schema import Schema
from pipeline.embeddings.coded import CodedTables, Moments, full_table, predictions
from pipeline.embeddings.cost import cost
from pipeline.models.model import first_order_of
from pipeline.serving.served import Served

BATCHES = (1, 2000)
WEIGHTS = (0.3, 0.3, 0.2, 0.1, 0.1)  # of the candidates, smallest first: most fields need few dimensions
UNIFORM = 3
CODED = (0.1, 0.05, 0.025)  # shares of the full tables' bytes
FULL, MIXED = "full, float32", "mixed, float32"
RESIDENT, CLAIMED, CLAIMED_ALL, SHARE = "resident bytes", "bytes", "bytes with backbone", "resident / claimed"


def run(quick: bool) -> dict[str, Any]:
    schema = shapes.criteo()
    drawn = shapes.draw_batches(schema, max(BATCHES), 1)
    chosen = draw_dims(schema)
    made = all_forms(schema)
    forms = {name: sizes(model, 1 if quick else 3) for name, model in made.items()}
    for name, times in latencies(made, drawn[0], quick).items():
        forms[name] |= times
    mixed = sum(chosen["mixed"].values())
    return {
        "shape": f"{shapes.describe(schema, drawn, models.DIM)} Mixed dimensions: {mixed:,} numbers for each row "
        f"of ids instead of {len(schema) * models.DIM:,}.",
        "forms": forms,
        "targets": targets(forms),
    }


def all_forms(schema: Schema) -> dict[str, Served]:
    """Tables of `draw_dims` in float32 and int8, and coded tables."""
    plain = {
        f"{name}, {kind}": served(schema, dims, kind == "int8")
        for name, dims in draw_dims(schema).items()
        for kind in ("float32", "int8")
    }
    return plain | {f"coded, {budget:.1%}": coded for budget, coded in coded_forms(schema).items()}


def coded_forms(schema: Schema) -> dict[float, Served]:
    """The served forms of planted tables that are coded within shares of their bytes."""
    model = coding.planted(schema)
    first_order = first_order_of(model.backbone)
    assert first_order is not None
    table = full_table(model.embedding, first_order.table)  # type: ignore[arg-type]
    first_order.table = None
    frequent = [1 / torch.arange(1, number + 1) ** shapes.EXPONENT for number in schema.cardinalities.tolist()]
    weights = torch.cat([of_field / of_field.sum() for of_field in frequent])
    moments = Moments(weights, torch.eye(table.shape[1], dtype=torch.float64).expand(len(schema), -1, -1))
    predicted = predictions(table, schema, moments)
    found = {}
    for budget in CODED:
        plans = choose(predicted, int(budget * table.nbytes))
        model.embedding = CodedTables.of(table, schema, models.DIM, plans, moments)
        found[budget] = Served.of(model)
    return found


def draw_dims(schema: Schema) -> dict[str, dict[str, int]]:
    """Full, uniform and mixed dimensions. The mixed dimensions are random, because their choice does not matter here.

    The uniform dimension has about the bytes of the largest coded tables.
    """
    drawn = np.random.default_rng(0).choice(models.CANDIDATES, len(schema), p=WEIGHTS)
    return {
        "full": dict.fromkeys(schema.names, models.DIM),
        "uniform": dict.fromkeys(schema.names, UNIFORM),
        "mixed": {name: int(d) for name, d in zip(schema.names, drawn, strict=True)},
    }


def served(schema: Schema, dims: dict[str, int], int8: bool) -> Served:
    """The served form of a model with these dimensions."""
    torch.manual_seed(0)
    return Served.of(models.allocated(schema, Allocation("autodim", dims)).eval(), int8)


def sizes(model: Served, processes: int) -> dict[str, float]:
    """Bytes of a served model: the claimed ones, and the resident ones, a median over new processes."""
    claimed = cost(model.packed()).bytes
    claimed_all = claimed + sum(value.nbytes for value in model.backbone.state_dict().values())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        model.save(file)
        resident = float(np.median([alone(resident_bytes, str(file)) for _ in range(processes)]))
    return {CLAIMED: claimed, CLAIMED_ALL: claimed_all, RESIDENT: resident, SHARE: resident / claimed_all}


def resident_bytes(file: str) -> int:
    """Growth of this process while it loads a model, reads every byte of it and answers a request.

    Small models of all forms run first, so that code and buffers are not counted.
    """
    small = shapes.criteo(20_000)
    ids = torch.zeros(2000, len(small), dtype=torch.int32)
    for form in all_forms(small).values():
        form(ids)
    process = psutil.Process()
    before = process.memory_info().rss
    model = Served.load(file)
    for tensor in (*model.packed().values(), *model.backbone.state_dict().values()):
        tensor.flatten().view(torch.uint8).count_nonzero()
    model(ids)
    return int(process.memory_info().rss - before)


def latencies(forms: dict[str, Served], batch: Batch, quick: bool) -> dict[str, dict[str, Any]]:
    """For each form and batch size, `timing.summary` of a request."""
    found: dict[str, dict[str, Any]] = {name: {} for name in forms}
    for size in BATCHES:
        turns = {name: lambda i, model=model, ids=batch.ids[:size]: model(ids) for name, model in forms.items()}
        taken = timing.interleave(turns, (200 if quick else 2000) if size == 1 else (20 if quick else 100))
        for name, entry in timing.summary(taken, FULL).items():
            found[name][f"batch {size}"] = entry
    return found


def targets(forms: dict[str, Any]) -> list[dict[str, Any]]:
    shares = [entry[SHARE] for entry in forms.values()]
    coded = [entry for name, entry in forms.items() if name.startswith("coded")]
    ratios = {"packed": [forms[MIXED]], "coded": coded}
    return [
        *(
            timing.target(
                f"{kind} inference, batch {size:,}, time / the full table's",
                max(entry[f"batch {size}"]["ratio"] for entry in entries),
                at_most=1.0,
            )
            for kind, entries in ratios.items()
            for size in BATCHES
        ),
        timing.target(
            "inference, resident memory / claimed, farthest from 1",
            max(shares, key=lambda share: abs(share - 1)),
            at_least=0.9,
            at_most=1.1,
        ),
    ]


def table(results: dict[str, Any]) -> str:
    rows = []
    for form, entry in results["forms"].items():
        times = [entry[f"batch {size}"][key] for size in BATCHES for key in ("median", "ratio")]
        rows.append((form, entry[CLAIMED], round(entry[RESIDENT]), entry[SHARE], *times))
    times_head = (f"{what}, {size:,}" for size in BATCHES for what in ("ms", "x full"))
    note = (
        "Bytes are those of the embedding. Resident is how much a process grows when it loads the file and reads all "
        "of it; / claimed is that divided by the bytes of the embedding and the backbone. The last columns are for "
        f"batches of {' and '.join(f'{size:,}' for size in BATCHES)} rows."
    )
    head = ("form", "bytes", "resident", "/ claimed", *times_head)
    return "\n\n".join(["## Inference", results["shape"], timing.markdown(head, rows), note])
