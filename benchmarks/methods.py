"""Time and memory of the search and the retraining of each method at Criteo's shape, compared with the plain model.

Every method of `pipeline.methods` runs its stages in a process of its own, with its default options and a quarter of
the full tables' bytes: it searches, derives an allocation, is trained for a few steps and finished. Then its steps take
turns with those of the plain model, which is the method ``full``.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models, shapes, timing
from benchmarks.alone import ProcessFailed, alone, peak_mib
from pipeline.allocation.allocation import Allocation
from pipeline.data.encoded import SCHEMA_FILE, Encoded
from pipeline.data.schema import Schema
from pipeline.data.split import Part
from pipeline.experiment import find, train
from pipeline.experiment.derive import derive, evidence
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.found import Found
from pipeline.training.loop import fit
from pipeline.training.search import LitSearch
from pipeline.training.weights import LitWeights
from pipeline.workflow.outputs import write_json
from pipeline.workflow.params import Architecture, Derive, Method, Params, Plug, Retrain, Search
from pipeline.workflow.plug import names

PARTS: dict[Part, int] = {"train": 8, "arch": 2, "val": 1}  # batches of each part
BUDGET = 0.25
PLAIN, RETRAINING, SEARCH, ARCHITECTURE = "plain", "retraining", "search", "architecture"
LIMIT = 8  # GiB


def run(quick: bool) -> dict[str, Any]:
    schema = shapes.criteo(100_000) if quick else shapes.criteo()
    rounds = 8 if quick else 24
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = write(schema, models.BATCH, folder)
        return results(shape, {method: measure_alone(method, folder, rounds) for method in methods()})


def methods() -> list[str]:
    """All methods except ``full``, with which each of them is compared."""
    return [name for name in names("methods") if name != "full"]


def write(schema: Schema, batch_size: int, folder: Path) -> str:
    """Write encoded rows of a schema, and return their description."""
    drawn = shapes.draw_batches(schema, batch_size, sum(PARTS.values()))
    waiting = iter(drawn)
    for part, number in PARTS.items():
        rows = models.split([next(waiting) for _ in range(number)])
        (folder / part).mkdir()
        np.save(folder / part / "ids.npy", np.concatenate(rows.ids))
        np.save(folder / part / "labels.npy", rows.all_labels())
    write_json(folder / SCHEMA_FILE, schema.to_dict())
    return shapes.describe(schema, drawn, models.DIM)


def experiment(name: str, encoded: Path, batch_size: int, epochs: int) -> Experiment:
    """A method with its default options on the rows of `write`; the parameters are those that its stages read."""
    training: dict[str, Any] = {"batch_size": batch_size, "epochs": epochs, "lr": 0.001, "weight_decay": 0.0}
    training |= {"checkpoint_seconds": models.NEVER}
    sections = {
        "task": Plug(name="ctr"),
        "dim": models.DIM,
        "candidates": {"paper": models.CANDIDATES},
        "method": Method(name=name),
        "backbone": Plug(name="deepfm"),
        "search": Search(**training, candidates="paper", seed=0, architecture=Architecture()),
        "derive": Derive(budget=BUDGET),
        "retrain": Retrain(**training, seeds=(0,), patience=None),
    }
    params = Params.model_construct(_fields_set=set(sections), **sections)
    return Experiment(params, Encoded(encoded, Schema.load(encoded / SCHEMA_FILE), labels={}, record={}))


def measure_alone(name: str, encoded: Path, rounds: int) -> dict[str, Any]:
    """`measure` in a process of its own; for a method that fails, the reason."""
    began = time.monotonic()
    try:
        measured: dict[str, Any] = alone(measure, name, str(encoded), rounds)
    except ProcessFailed as error:
        measured = {"failed": error.reason}
    print(f"methods: {name}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return measured


def measure(name: str, encoded: str, rounds: int, batch_size: int = models.BATCH) -> dict[str, Any]:
    """Measure one method in this process: its stages once, with their peak memory, and then its steps in turns."""
    once = experiment(name, Path(encoded), batch_size, 1)
    before = peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        began = time.monotonic()
        found = find.find(once, work)
        finding, finding_peak = time.monotonic() - began, max(before, peak_mib())  # the counter lags by some pages
        given = evidence(found, once.schema, once.params.derive.budget)
        allocation, size = derive(once.method, given)
        what, full_bytes = found_by(found), given.full_bytes
        del found, given
        gc.collect()
        module, batches = train.prepare(once, allocation, 0, once.params.retrain, None)
        fit(module, batches, 1, name, work / "none.ckpt", models.NEVER)
        module.model.load_state_dict(module.best)
        began = time.monotonic()
        module.model.embedding.finish()
        finishing = time.monotonic() - began
    peak = max(finding_peak, peak_mib())
    del module, batches
    gc.collect()
    planned = experiment(name, Path(encoded), batch_size, models.PLANNED // PARTS["train"])
    return {
        "finds": what,
        "bytes": size,
        "of full": size / full_bytes,
        "finding, s": finding,
        "finishing, s": finishing,
        "MiB": {"before": before, "finding": finding_peak, "all": peak},
        "steps": measure_steps(planned, allocation, rounds),
    }


def found_by(found: Found) -> str:
    """The kind of a search's findings; empty if the method derives from the schema alone."""
    if found.steps is not None:
        return "supernet"
    return "proposals" if found.trials else "arrays" if found.arrays else ""


def measure_steps(planned: Experiment, allocation: Allocation, rounds: int) -> dict[str, dict[str, float]]:
    """Steps after three quarters of a run, when all warm-ups and delays are over; see `timing.summary`."""

    def prepared(allocation: Allocation) -> tuple[LitWeights, Any]:
        return train.prepare(planned, allocation, 0, planned.params.retrain, None)

    plain, batches = prepared(models.full(planned.schema))
    drawn = list(batches)
    modules: dict[str, LitWeights] = {PLAIN: plain, RETRAINING: prepared(allocation)[0]}
    if planned.method.trains:
        modules[SEARCH] = find.prepare(planned)[0]
    turns: dict[str, timing.Step] = {}
    for kind, module in modules.items():
        module.steps = module.planned * 3 // 4
        turns[kind] = models.weight_steps(module, drawn)
        arch = module.model.embedding.arch_parameters()
        if isinstance(module, LitSearch) and arch and module.architecture.level == "bilevel":  # else one step does both
            turns[ARCHITECTURE] = models.arch_steps(module, drawn)
    taken = timing.interleave(turns, rounds)
    if ARCHITECTURE in taken:
        taken[SEARCH] = taken[SEARCH] + taken.pop(ARCHITECTURE) / planned.architecture.every
    return timing.summary(taken, PLAIN)


def results(shape: str, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The measurements, and the targets: all methods run, in little memory."""
    ran = {name: entry for name, entry in measured.items() if "failed" not in entry}
    most = max(ran, key=lambda name: ran[name]["MiB"]["all"], default=None)
    reached = None if most is None else ran[most]["MiB"]["all"] / 1024
    return {
        "shape": shape,
        "methods": dict(measured),
        "targets": [
            timing.target("methods that run, share", len(ran) / len(measured), at_least=1),
            timing.target(f"peak memory of a method, GiB, the most ({most})", reached, at_most=LIMIT),
        ],
    }


def table(results: Mapping[str, Any]) -> str:
    rows = [_row(name, entry) for name, entry in results["methods"].items() if "failed" not in entry]
    failed = [f"Failed: {name}: {entry['failed']}" for name, entry in results["methods"].items() if "failed" in entry]
    head = (
        *("method", "finds", "search, ms a step", "x plain", "retraining, ms a step", "x plain", "plain, ms"),
        *("finding, s", "finishing, s", "peak GiB, finding", "peak GiB, all", "of full"),
    )
    return "\n\n".join(
        [
            "## Methods",
            f"{results['shape']} DeepFM, {BUDGET:.0%} of the full tables' bytes. Each method has a process of its own, "
            "in which its steps take turns with those of the plain model. A step of the search includes its share of "
            f"a step of the architecture. Finding takes {PARTS['train']} steps, and all that the search does besides. "
            "Memory is that of the whole process, with the interpreter, torch and the data.",
            timing.markdown(head, rows),
            *failed,
        ]
    )


def _row(name: str, entry: Mapping[str, Any]) -> tuple[Any, ...]:
    steps, memory = entry["steps"], entry["MiB"]
    search, again = steps.get(SEARCH, {}), steps[RETRAINING]
    return (
        *(name, entry["finds"]),
        *(search.get("median"), search.get("ratio")),
        *(again["median"], again["ratio"], steps[PLAIN]["median"]),
        *(round(entry[key], 3) for key in ("finding, s", "finishing, s")),
        *(memory["finding"] / 1024, memory["all"] / 1024),
        entry["of full"],
    )
