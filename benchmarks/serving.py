"""What mixed dimensions save when a model is served: time of a request, bytes, and memory that a process really takes.

python -m benchmarks.serving
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import models, shapes, timing
from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Schema
from pipeline.embeddings.cost import cost
from pipeline.models.model import assemble
from pipeline.serving.packed import Served
from pipeline.workflow.plug import plug

BATCHES = (1, 2000)
WEIGHTS = (0.3, 0.3, 0.2, 0.1, 0.1)  # of the candidates, smallest first: most fields need little
FULL, MIXED = "full, float32", "mixed, float32"


def dims(schema: Schema) -> dict[str, dict[str, int]]:
    """Full and mixed dimensions; the mixed ones are drawn, for what a search would choose does not matter here."""
    drawn = np.random.default_rng(0).choice(models.CANDIDATES, len(schema), p=WEIGHTS)
    return {
        "full": dict.fromkeys(schema.names, models.DIM),
        "mixed": {name: int(d) for name, d in zip(schema.names, drawn, strict=True)},
    }


def served(schema: Schema, chosen: dict[str, int], int8: bool, backbone: str = "deepfm") -> Served:
    autodim = plug("methods", "autodim")
    torch.manual_seed(0)
    made = plug("backbones", backbone).Backbone
    model = assemble(schema, models.DIM, Allocation("autodim", chosen), autodim.build, made)
    return Served.of(model.eval(), int8)


def run(quick: bool) -> dict[str, Any]:
    schema = shapes.criteo()
    ids = shapes.batches(schema, max(BATCHES), 1)[0][0]
    chosen = dims(schema)
    forms: dict[str, Served] = {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, of_fields in chosen.items():
            for kind in ("float32", "int8"):
                form = f"{name}, {kind}"
                forms[form] = served(schema, of_fields, kind == "int8")
                file = Path(folder) / f"{form}.safetensors"
                forms[form].save(file)
                rest = sum(value.nbytes for value in forms[form].backbone.state_dict().values())
                claimed = cost(forms[form].packed()).bytes
                resident = [_resident(file) for _ in range(1 if quick else 3)]
                found[form] = {
                    "bytes": claimed,
                    "bytes with backbone": claimed + rest,
                    "resident bytes": float(np.median(resident)),
                    "resident / claimed": float(np.median(resident)) / (claimed + rest),
                }
    for batch in BATCHES:
        turns = {form: lambda i, model=model, batch=batch: model(ids[:batch]) for form, model in forms.items()}
        taken = timing.interleave(turns, (200 if quick else 2000) if batch == 1 else (20 if quick else 100))
        for form, entry in timing.summary(taken, FULL).items():
            found[form][f"batch {batch}"] = entry
    return {
        "shape": shapes.describe(schema, [(ids, ids[:, 0])], models.DIM)
        + f" Mixed dimensions: {sum(chosen['mixed'].values())} numbers a row instead of {len(schema) * models.DIM}.",
        "forms": found,
        "targets": [
            *(
                timing.target(f"{what} / the full table's", found[MIXED][f"batch {b}"]["ratio"], at_most=1.0)
                for b, what in ((b, f"packed inference, batch {b:,}, time") for b in BATCHES)
            ),
            timing.target(
                "packed inference, resident memory / claimed, farthest from 1",
                max((entry["resident / claimed"] for entry in found.values()), key=lambda r: abs(r - 1)),
                at_least=0.9,
                at_most=1.1,
            ),
        ],
    }


def table(results: dict[str, Any]) -> str:
    rows = []
    for form, entry in results["forms"].items():
        times = [entry[f"batch {b}"][key] for b in BATCHES for key in ("median", "ratio")]
        rows.append((form, entry["bytes"], round(entry["resident bytes"]), entry["resident / claimed"], *times))
    head = ("form", "bytes", "resident", "/ claimed", *(f"{what}, {b:,}" for b in BATCHES for what in ("ms", "x full")))
    note = (
        "Bytes are the embedding's; resident is how much a process grows by loading the file and reading all of it, "
        "/ claimed is by those bytes and the backbone's."
    )
    return "\n\n".join(["## Inference", results["shape"], timing.markdown(head, rows), note])


def _resident(file: Path) -> int:
    """Growth of the resident memory of a new process that loads a served model, in bytes."""
    command = [sys.executable, "-m", "benchmarks.serving", "--resident", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def _measure(file: Path) -> int:
    """Load it, read every byte of it and answer; code and buffers were warmed by a small model before."""
    import psutil

    small = Schema(shapes.criteo(1000).fields)
    ids = torch.zeros(2000, len(small), dtype=torch.int32)
    for int8 in (False, True):
        served(small, dims(small)["mixed"], int8)(ids)
    process = psutil.Process()
    before = process.memory_info().rss
    model = Served.load(file)
    for tensor in (*model.packed().values(), *model.backbone.state_dict().values()):
        tensor.flatten().view(torch.uint8).count_nonzero()
    model(ids)
    return int(process.memory_info().rss - before)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident:
        print(_measure(options.resident))
    else:
        print(table(run(quick=True)))
