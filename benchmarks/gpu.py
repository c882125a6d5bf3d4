"""Training and search steps on a GPU, beside other libraries' there; without one, nothing is measured.

What is compared takes turns in one process, and the GPU has finished one step before the next begins. The project's
own steps run in torch's deterministic mode, as `pipeline.lit.fit` has it, so that a run can be repeated to the last
bit; one line tells the plain step without it, and the loops and others' steps are without it too. A step of the
architecture fetches its own batch from the CPU, as in a search. Libraries that are not installed are left out.

    python -m benchmarks.gpu
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import models, peers, shapes, supernets, timing
from benchmarks.search import EVERY, FIRST, FOLDED, LOOPS, PLAIN, SECOND
from pipeline.data.schema import Schema
from pipeline.training.search import LitSearch
from pipeline.training.weights import LitCTR
from stages import _model

DEVICE = "cuda:0"
FREE = "plain step, not deterministic"
SIZES = (models.BATCH, 16_000)  # rows of a batch: the benchmarks', and one that a GPU has more to do for


def run(quick: bool) -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"left out": ["there is no GPU"], "batches": {}, "targets": []}
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the deterministic mode
    _model.tune()
    torch.manual_seed(0)
    schema = shapes.criteo()
    found = {size: measure(schema, size, 24 if quick else 100, DEVICE) for size in SIZES[: 1 if quick else None]}
    return {
        "gpu": torch.cuda.get_device_name(),
        "left out": [f"{name}: not installed" for name in peers.missing()],
        "batches": found,
        "targets": [
            timing.target(
                f"on the GPU, batch {size:,}: search step (weights), time x the plain step",
                entry["steps"][FOLDED]["ratio"],
                at_most=1.35,
            )
            for size, entry in found.items()
        ],
    }


def deterministic(step: Callable[[int], Any]) -> Callable[[int], None]:
    """The same step in torch's deterministic mode."""

    def step_again(number: int) -> None:
        torch.use_deterministic_algorithms(True)
        try:
            step(number)
        finally:
            torch.use_deterministic_algorithms(False)

    return step_again


def measure(schema: Schema, batch_size: int, rounds: int, device: str) -> dict[str, Any]:
    """Milliseconds of each step, and MiB that the two of ours allocate at most."""
    drawn = shapes.batches(schema, batch_size, 12)
    on_gpu = device != "cpu"
    allocated = {kind: _allocated(kind, schema, drawn, device) for kind in ("plain", "search")} if on_gpu else {}
    batches = [(ids.to(device), labels.to(device)) for ids, labels in drawn]
    rows = models.split(drawn)

    def weights(module: LitCTR) -> Any:
        optimizers = module.to(device).configure_optimizers()
        return lambda i: module.weight_step(batches[i % len(batches)], optimizers)

    folded = models.searched(schema, rows, batch_size=batch_size)
    second = models.searched(schema, rows, batch_size=batch_size, order=2).to(device)
    second.configure_optimizers()
    written_out = supernets.WrittenOut(folded.model).to(device)
    adam = written_out.optimizer()
    plain = weights(models.plain(schema, rows))
    steps = {
        PLAIN: deterministic(plain),
        FREE: plain,
        FOLDED: deterministic(weights(folded)),
        FIRST: deterministic(lambda i: folded.arch_step(batches[i % len(batches)])),
        SECOND: deterministic(lambda i: second.arch_step(batches[i % len(batches)])),
        LOOPS: lambda i: written_out.weight_step(batches[i % len(batches)], adam),
    }
    absent = peers.missing()
    for make in peers.PEERS:
        if make.name in absent:  # type: ignore[attr-defined]
            continue
        for form in ("as it comes", "fused", "sparse"):
            peer = make(schema, models.DIM, form, device)
            prepared = [peer.prepare(batch) for batch in drawn]
            steps[f"{peer.name}, {form}"] = lambda i, p=peer, b=prepared: p.step(b[i % len(b)])
    taken = timing.interleave(
        steps, rounds, seldom={LOOPS: max(1, rounds // 4)}, settle=torch.cuda.synchronize if on_gpu else lambda: None
    )
    taken[f"weights + architecture, first order / {EVERY}"] = taken[FOLDED] + taken[FIRST] / EVERY
    return {
        "shape": shapes.describe(schema, drawn, models.DIM),
        "steps": {
            name: entry | {"samples/s": 1e3 * batch_size / entry["median"]}
            for name, entry in timing.summary(taken, PLAIN).items()
        },
        "MiB": allocated,
    }


def _allocated(kind: str, schema: Schema, drawn: list[peers.Batch], device: str) -> float:
    """At most, on the GPU, by a model and some steps of its training."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    rows = models.split(drawn)
    module: LitCTR
    if kind == "plain":
        module = models.plain(schema, rows)
    else:
        module = models.searched(schema, rows, batch_size=len(drawn[0][1]))
    optimizers = module.to(device).configure_optimizers()
    for ids, labels in drawn:
        module.weight_step((ids.to(device), labels.to(device)), optimizers)
    if isinstance(module, LitSearch):
        module.arch_step((ids.to(device), labels.to(device)))
    return float(torch.cuda.max_memory_allocated() - before) / 2**20


def table(results: dict[str, Any]) -> str:
    parts = ["## On a GPU", *(f"Not measured: {what}." for what in results["left out"])]
    for entry in results["batches"].values():
        rows = [
            (name, step["median"], f"{step['low']:.2f} to {step['high']:.2f}", step["samples/s"], step["ratio"])
            for name, step in entry["steps"].items()
        ]
        parts += [
            f"{results['gpu']}. {entry['shape']} Ids and labels are on the GPU before a step, but the architecture's.",
            timing.markdown(("ms of a step", "median", "quartiles", "samples/s", "x plain"), rows),
        ]
        if entry["MiB"]:
            parts.append("Allocated at most: " + ", ".join(f"{k} {v:,.0f} MiB" for k, v in entry["MiB"].items()) + ".")
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(table(run(quick=False)))
