"""Steps of training and search on a GPU, compared with other libraries; without a GPU, nothing is measured.

The compared steps take turns in one process, and the GPU finishes each step before the next one begins. The project's
own steps run in torch's deterministic mode, as in `pipeline.training.loop.fit`, so that a run can be repeated bit for
bit. They are run as they come, and replayed as CUDA graphs (`pipeline.training.replay`). The written-out loops and the
steps of other libraries run without it, and one line shows the plain step without it, too. A step of the architecture
fetches its own batch from the CPU, as in a search. Libraries that are not installed are left out.

A second table has whole steps, as a training takes them, in runs of `RUN`. They read their batches as each is due, or
ahead (`pipeline.training.ahead`), and multiply in float32 or bfloat16 (`pipeline.models.precision`). There, the GPU
finishes a run before the next one begins. One more run of each, under the profiler, says how long the GPU computes.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import DeviceType, ProfilerActivity, profile

from benchmarks import models, peers, shapes, supernets, timing
from benchmarks.search import EVERY, FIRST, FOLDED, LOOPS, PLAIN, SECOND, with_weights
from pipeline.data.batches import Batch, Batches
from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.training.ahead import Ahead
from pipeline.training.search import LitSearch
from pipeline.workflow.params import Architecture, Precision

DEVICE = "cuda:0"
FREE = "plain step, not deterministic"
REPLAYED = "plain step, replayed"
REPLAYED_SEARCH = "search step (weights), replayed"
REPLAYED_ARCH = "search step (architecture), replayed"
SIZES = (2048, 16_384)  # rows of a batch: about as in the other benchmarks, and enough to keep a GPU busy
RUN = 40  # steps of a training that follow each other
PRECISIONS: tuple[Precision, ...] = (32, "bf16")
FORMS = ("as due", "ahead", "ahead, replayed")  # of a training's step


def run(quick: bool) -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"left out": ["there is no GPU"], "batches": {}, "targets": []}
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by the deterministic mode
    torch.manual_seed(0)
    schema = shapes.criteo()
    found = {size: measure(schema, size, 24 if quick else 100, DEVICE) for size in SIZES[: 1 if quick else None]}
    return {
        "gpu": torch.cuda.get_device_name(),
        "left out": [f"{name}: not installed" for name in peers.missing()],
        "batches": found,
        "targets": [target for size, entry in found.items() for target in targets(size, entry["steps"])],
    }


def targets(size: int, steps: dict[str, Any]) -> list[dict[str, Any]]:
    """What replayed steps should reach, by their median times; torchfm's is that of its fastest form."""
    plain = steps[REPLAYED]["median"]
    found = [(f"{REPLAYED_SEARCH}, time x the {REPLAYED}", steps[REPLAYED_SEARCH]["median"] / plain, 1.35)]
    if peers_steps := [step["median"] for name, step in steps.items() if name.startswith("torchfm")]:
        found.append((f"{REPLAYED}, time x torchfm's", plain / min(peers_steps), 0.5))
    return [timing.target(f"on the GPU, batch {size:,}: {what}", ratio, at_most=most) for what, ratio, most in found]


def measure(schema: Schema, batch_size: int, rounds: int, device: str) -> dict[str, Any]:
    """``steps`` and ``training``, see `timing.summary` and `trainings`, and ``MiB``, the peak allocations of plain
    training and of a search on a GPU."""
    drawn = shapes.draw_batches(schema, batch_size, 12)
    on_gpu = device != "cpu"
    allocated = {kind: allocated_mib(kind, schema, drawn, device) for kind in models.KINDS} if on_gpu else {}
    steps = own_steps(schema, drawn, device)
    for peer in peers.installed():
        for form in peers.FORMS:
            steps[f"{peer.name}, {form}"] = peer(schema, models.DIM, form, device).steps(drawn)
    taken = timing.interleave(
        steps, rounds, fewer={LOOPS: max(1, rounds // 4)}, settle=torch.cuda.synchronize if on_gpu else lambda: None
    )
    taken[with_weights(FIRST)] = taken[FOLDED] + taken[FIRST] / EVERY
    return {
        "shape": shapes.describe(schema, drawn, models.DIM),
        "steps": timing.summary(taken, PLAIN, batch_size),
        "training": trainings(schema, models.split(drawn), batch_size, max(3, rounds // 10), device),
        "MiB": allocated,
    }


def own_steps(schema: Schema, drawn: Sequence[Batch], device: str) -> dict[str, timing.Step]:
    """The project's own steps and the written-out loops, on batches that are already on the device."""
    batches, rows, size = [_moved(batch, device) for batch in drawn], models.split(drawn), len(drawn[0].labels)
    folded = models.searched(schema, rows, batch_size=size).to(device)
    second = models.searched(schema, rows, batch_size=size, architecture=Architecture(order=2)).to(device)
    written_out = supernets.WrittenOut(folded.model).to(device)
    adam = written_out.optimizer()
    plain = models.weight_steps(models.plain(schema, rows).to(device), batches)
    replayed, search = models.plain(schema, rows), models.searched(schema, rows, batch_size=size)
    for module in (replayed, search):
        module.fix()
        module.to(device)
    return {
        PLAIN: deterministic(plain),
        FREE: plain,
        FOLDED: deterministic(models.weight_steps(folded, batches)),
        FIRST: deterministic(models.arch_steps(folded, batches)),
        SECOND: deterministic(models.arch_steps(second, batches)),
        REPLAYED: deterministic(models.weight_steps(replayed, batches)),
        REPLAYED_SEARCH: deterministic(models.weight_steps(search, batches)),
        REPLAYED_ARCH: deterministic(models.arch_steps(search, batches)),
        LOOPS: lambda i: written_out.weight_step(batches[i % len(batches)], adam),
    }


def trainings(schema: Schema, rows: Split, batch_size: int, rounds: int, device: str) -> dict[str, dict[str, Any]]:
    """A step of each kind of training in each precision and form, see `timing.summary`, with ``busy``, the share of
    the time in which the GPU computes. On a CPU there is the first form only, and ``busy`` is None."""
    on_gpu = device != "cpu"
    runs = {
        name_of(kind, precision, form): run_of(kind, precision, form, schema, rows, batch_size, device)
        for kind, precision, form in product(models.KINDS, PRECISIONS, FORMS if on_gpu else FORMS[:1])
    }
    settle = torch.cuda.synchronize if on_gpu else lambda: None
    taken = {name: times / RUN for name, times in timing.interleave(runs, rounds, settle=settle).items()}
    found: dict[str, dict[str, Any]] = {}
    for name, entry in timing.summary(taken, name_of("plain", 32, "as due"), batch_size).items():
        found[name] = {**entry, "busy": profiled(runs[name]) if on_gpu else None}
    return found


def name_of(kind: models.Kind, precision: Precision, form: str) -> str:
    return f"{kind}, {'float32' if precision == 32 else 'bfloat16'}, {form}"


def run_of(
    kind: models.Kind, precision: Precision, form: str, schema: Schema, rows: Split, batch_size: int, device: str
) -> timing.Step:
    """`RUN` steps of a training, with all but the validation and Lightning's loop."""
    module = models.training(kind, schema, rows, batch_size=batch_size)
    module.model.mixed = precision == "bf16"
    if form.endswith("replayed"):
        module.fix()
    module.to(device)
    trainer = SimpleNamespace(optimizers=module.configure_optimizers(), should_stop=False)
    module.trainer = trainer  # type: ignore[assignment]
    batches = Batches(rows, batch_size, seed=0)
    if form != "as due":
        module.on_train_start()
    fed = batches if form == "as due" else Ahead(batches, torch.device(device))

    def run(number: int) -> None:
        for step in range(RUN):
            module.training_step(_moved(fed.take(), device), step)

    return deterministic(run)


def profiled(run: timing.Step) -> float:
    """The share of the time of a run in which the GPU computes; copies do not count."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        run(0)
        torch.cuda.synchronize()
        taken = 1e6 * (time.perf_counter() - began)
    kernels = [event.time_range for event in profiler.events() if _computes(event)]
    return busy([(kernel.start, kernel.end) for kernel in kernels], taken)


def _computes(event: FunctionEvent) -> bool:
    on_gpu = event.device_type == DeviceType.CUDA and not event.is_user_annotation
    return on_gpu and not event.name.startswith("Memcpy")


def busy(spans: Sequence[tuple[float, float]], taken: float) -> float:
    """The share of a time that is in one or more of the spans (begin, end)."""
    total, reached = 0.0, -np.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total / taken


def deterministic(step: timing.Step) -> timing.Step:
    """The same step in torch's deterministic mode."""

    def in_that_mode(number: int) -> None:
        torch.use_deterministic_algorithms(True)
        try:
            step(number)
        finally:
            torch.use_deterministic_algorithms(False)

    return in_that_mode


def allocated_mib(kind: models.Kind, schema: Schema, drawn: Sequence[Batch], device: str) -> float:
    """The peak allocation on the GPU of a model and some steps of its training."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    module = models.training(kind, schema, models.split(drawn), batch_size=len(drawn[0].labels)).to(device)
    optimizers = module.configure_optimizers()
    for batch in drawn:
        moved = _moved(batch, device)
        module.weight_step(moved, optimizers)
    if isinstance(module, LitSearch):
        module.arch_step(moved)
    return float(torch.cuda.max_memory_allocated() - before) / 2**20


def _moved(batch: Batch, device: str) -> Batch:
    return Batch(batch.ids.to(device), batch.labels.to(device))


def table(results: dict[str, Any]) -> str:
    parts = ["## On a GPU", *(f"Not measured: {what}." for what in results["left out"])]
    for entry in results["batches"].values():
        rows = [
            (name, step["median"], timing.low_to_high(step, 2), step["samples/s"], step["ratio"])
            for name, step in entry["steps"].items()
        ]
        parts += [
            f"{results['gpu']}. {entry['shape']} Ids and labels are on the GPU before a step, except the "
            "architecture's own.",
            timing.markdown(("ms of a step", "median", "quartiles", "samples/s", "x plain"), rows),
            f"Steps of a training, {RUN} in a row, with the reading of their batches; in a search, each with a step of "
            "the architecture.",
            timing.markdown(
                ("ms of a step", "median", "quartiles", "samples/s", "x plain", "share of time that the GPU computes"),
                [
                    (name, step["median"], timing.low_to_high(step, 2), step["samples/s"], step["ratio"], step["busy"])
                    for name, step in entry["training"].items()
                ],
            ),
        ]
        if entry["MiB"]:
            parts.append("Allocated at most: " + ", ".join(f"{k} {v:,.0f} MiB" for k, v in entry["MiB"].items()) + ".")
    return "\n\n".join(parts)
