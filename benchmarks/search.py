"""The cost of a search step, compared with plain training here and in torchfm, and with other forms of the supernet.

All forms of the supernet compute the same function, forward, backward and update; see `benchmarks.supernets`. The
results of torchfm are left out if it is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import alone, models, peers, shapes, supernets, timing
from pipeline.data.batches import Batch
from pipeline.data.schema import Schema
from pipeline.training.search import LitSearch
from pipeline.workflow.params import Architecture

PLAIN, FOLDED, LOOPS = "plain step", "search step, weights", "written-out loops, dense Adam"
FIRST, SECOND = "architecture step, first order", "architecture step, second order"
TORCHFM = "torchfm's plain step"
EVERY = 10  # f, weight steps per architecture step
MEMORY_STEPS = 12  # of the process whose peak memory is measured

TITLES = {"plain": "plain training", "search": "search"}


def run(quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    schema = shapes.criteo()
    batches = shapes.draw_batches(schema, models.BATCH, 24)
    taken = measure(schema, batches, rounds=24 if quick else 120)
    return results(schema, batches, taken, {kind: alone.alone(memory, kind) for kind in models.KINDS})


def measure(schema: Schema, batches: Sequence[Batch], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of each step in each round."""
    rows, size = models.split(batches), len(batches[0].labels)
    folded = models.searched(schema, rows, batch_size=size)
    second = models.searched(schema, rows, batch_size=size, architecture=Architecture(order=2))
    padded = models.searched(schema, rows, batch_size=size, unification="padding")
    separate = models.searched(schema, rows, batch_size=size, sharing="separate")
    stacked = supernets.stack(models.searched(schema, rows, batch_size=size))
    written_out = supernets.WrittenOut(folded.model)
    adam = written_out.optimizer()
    steps = {
        PLAIN: models.weight_steps(models.plain(schema, rows), batches),
        FOLDED: models.weight_steps(folded, batches),
        FIRST: models.arch_steps(folded, batches),
        SECOND: models.arch_steps(second, batches),
        "padding instead of linear maps, folded": models.weight_steps(padded, batches),
        "separate tables, folded": models.weight_steps(separate, batches),
        "stacked, sparse updates": models.weight_steps(stacked, batches),
        LOOPS: lambda i: written_out.weight_step(batches[i % len(batches)], adam),
    }
    if peers.TorchFM in peers.installed():
        steps[TORCHFM] = peers.TorchFM(schema, models.DIM, "as it comes").steps(batches)
    taken = timing.interleave(steps, rounds, fewer={LOOPS: rounds // 4})
    for name in (FIRST, SECOND):
        taken[with_weights(name)] = taken[FOLDED] + taken[name] / EVERY
    return taken


def with_weights(name: str) -> str:
    """The name of an average search step: one step of the weights, and its share of a step of the architecture."""
    return f"weights + {name.replace(' step', '')} / {EVERY}"


def memory(kind: models.Kind) -> dict[str, float]:
    """MiB of this process ``before`` it builds a model, at its ``peak``, and the difference, the model's ``own``.

    The model takes some steps of the weights, and in a search then one step of the architecture.
    """
    schema = shapes.criteo()
    batches = shapes.draw_batches(schema, models.BATCH, MEMORY_STEPS)
    rows = models.split(batches)
    before = alone.peak_mib()
    module = models.training(kind, schema, rows)
    optimizers = module.configure_optimizers()
    for batch in batches:
        module.weight_step(batch, optimizers)
    if isinstance(module, LitSearch):
        module.arch_step(batches[-1])
    peak = alone.peak_mib()
    return {"before": before, "peak": peak, "own": peak - before}


def results(
    schema: Schema,
    batches: Sequence[Batch],
    taken: Mapping[str, np.ndarray],
    memories: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The results of `measure` and `memory`, with ratios and targets."""
    steps = timing.summary(taken, PLAIN)
    for name, entry in steps.items():
        entry["ratio to folded"] = timing.ratio(taken[name], taken[FOLDED])
    return {
        "shape": shapes.describe(schema, batches, models.DIM),
        "steps": steps,
        "memory": dict(memories),
        "left out": [] if TORCHFM in taken else [f"{TORCHFM}: torchfm is not installed"],
        "targets": targets(taken, memories),
    }


def targets(taken: Mapping[str, np.ndarray], memories: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    def ratio(name: str, reference: str) -> float | None:
        return timing.ratio(taken[name], taken[reference]) if reference in taken else None

    own = memories["search"]["own"] / memories["plain"]["own"]
    whole = timing.ratio(taken[with_weights(SECOND)], taken[with_weights(FIRST)])
    return [
        timing.target("search step (weights), time x the plain step", ratio(FOLDED, PLAIN), at_most=1.35),
        timing.target("search step (weights), time x torchfm's plain step", ratio(FOLDED, TORCHFM), at_most=0.3),
        timing.target("written-out loops, time x the search step (weights)", ratio(LOOPS, FOLDED), at_least=50),
        timing.target(f"second-order search, weights + architecture / {EVERY}, time x first-order", whole, at_most=3.5),
        timing.target("second-order architecture step alone, time x first-order", ratio(SECOND, FIRST), at_most=3.5),
        timing.target("search, peak memory x plain training's", own, at_most=1.2),
    ]


def table(results: Mapping[str, Any]) -> str:
    steps = [
        (
            *(name, entry["median"], timing.low_to_high(entry), entry["rounds"]),
            *(entry["ratio"], entry["ratio to folded"]),
        )
        for name, entry in results["steps"].items()
    ]
    memory_rows = [
        (TITLES[kind], *(entry[key] for key in ("own", "before", "peak"))) for kind, entry in results["memory"].items()
    ]
    return "\n\n".join(
        [
            "## Search",
            results["shape"] + f" Candidates {', '.join(map(str, models.CANDIDATES))}, DeepFM.",
            timing.markdown(("ms of a step", "median", "quartiles", "rounds", "x plain", "x search step"), steps),
            *(f"Not measured: {what}." for what in results["left out"]),
            f"Peak memory of a process that takes {MEMORY_STEPS} steps of the weights, and in the search one of the "
            "architecture:",
            timing.markdown(("MiB", "model and training", "interpreter, torch, data", "all"), memory_rows),
        ]
    )
