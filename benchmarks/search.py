"""What a step of the search costs: beside plain training here and in torchfm, and beside its other forms.

All forms of the supernet compute the same function, with forward, backward and update; see `benchmarks.supernets`.
Wants torchfm beside the project's own packages, and leaves its figures out if that is missing.

    python -m benchmarks.search
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks import models, peers, shapes, supernets, timing
from pipeline.data.schema import Schema
from pipeline.training.weights import LitCTR
from stages import _model

PLAIN, FOLDED, LOOPS = "plain step", "search step, weights", "written-out loops, dense Adam"
FIRST, SECOND = "architecture step, first order", "architecture step, second order"
TORCHFM = "torchfm's plain step"
EVERY = 10  # f, weight steps per architecture step
MEMORY_STEPS = 12  # of a process whose peak memory is taken

Model = Literal["plain", "search"]


def run(quick: bool) -> dict[str, Any]:
    _model.tune()
    torch.manual_seed(0)
    schema = shapes.criteo()
    batches = shapes.batches(schema, models.BATCH, 24)
    taken = _taken(schema, batches, rounds=24 if quick else 120)
    memory = {model: _memory(model) for model in ("plain", "search")}
    return _results(schema, batches, taken, memory)


def _results(
    schema: Schema, batches: list[peers.Batch], taken: dict[str, np.ndarray], memory: dict[str, dict[str, float]]
) -> dict[str, Any]:
    return {
        "shape": shapes.describe(schema, batches, models.DIM),
        "steps": {
            name: timing.spread(values)
            | {"ratio": timing.ratio(values, taken[PLAIN])}
            | {"ratio to folded": timing.ratio(values, taken[FOLDED])}
            for name, values in taken.items()
        },
        "memory": memory,
        "left out": [] if TORCHFM in taken else [f"{TORCHFM}: torchfm is not installed"],
        "targets": _targets(taken, memory),
    }


def _taken(schema: Schema, batches: list[peers.Batch], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of each step in each round."""
    rows = models.split(batches)

    def weights(module: LitCTR) -> Any:
        optimizers = module.configure_optimizers()
        return lambda i: module.weight_step(batches[i % len(batches)], optimizers)

    folded, second = models.searched(schema, rows), models.searched(schema, rows, order=2)
    second.configure_optimizers()
    written_out = supernets.WrittenOut(folded.model)
    adam = written_out.optimizer()
    steps = {
        PLAIN: weights(models.plain(schema, rows)),
        FOLDED: weights(folded),
        FIRST: lambda i: folded.arch_step(batches[i % len(batches)]),
        SECOND: lambda i: second.arch_step(batches[i % len(batches)]),
        "padding instead of linear maps, folded": weights(models.searched(schema, rows, unification="padding")),
        "separate tables, folded": weights(models.searched(schema, rows, sharing="separate")),
        "stacked, sparse updates": weights(supernets.stack(models.searched(schema, rows))),
        LOOPS: lambda i: written_out.weight_step(batches[i % len(batches)], adam),
    }
    if "torchfm" not in peers.missing():
        peer = peers.TorchFM(schema, models.DIM, "as it comes")
        prepared = [peer.prepare(batch) for batch in batches]
        steps[TORCHFM] = lambda i: peer.step(prepared[i % len(prepared)])
    taken = timing.interleave(steps, rounds, seldom={LOOPS: rounds // 4})
    for name in (FIRST, SECOND):
        taken[_with_weights(name)] = taken[FOLDED] + taken[name] / EVERY
    return taken


def _with_weights(name: str) -> str:
    """A step of the search on average: one of the weights, and its share of one of the architecture."""
    return f"weights + {name.replace(' step', '')} / {EVERY}"


def _memory(model: Model) -> dict[str, float]:
    """MiB of a process of its own: ``before`` the model is made, ``peak``, and the training's ``own``."""
    command = [sys.executable, "-m", "benchmarks.search", "--memory", model]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _train(model: Model) -> dict[str, float]:
    """Some steps in this process; the last is followed by one of the architecture, if it is searched."""
    _model.tune()
    schema = shapes.criteo()
    batches = shapes.batches(schema, models.BATCH, MEMORY_STEPS)
    rows = models.split(batches)
    before = _peak_mib()
    if model == "plain":
        module = models.plain(schema, rows)
    else:
        module = models.searched(schema, rows)
    optimizers = module.configure_optimizers()
    for batch in batches:
        module.weight_step(batch, optimizers)
    if model == "search":
        module.arch_step(batches[-1])
    peak = _peak_mib()
    return {"before": before, "peak": peak, "own": peak - before}


def _peak_mib() -> float:
    """Of this process, until now: what Linux calls VmHWM."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _targets(taken: dict[str, np.ndarray], memory: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    def ratio(name: str, reference: str) -> float | None:
        return timing.ratio(taken[name], taken[reference]) if reference in taken else None

    own = memory["search"]["own"] / memory["plain"]["own"]
    whole = timing.ratio(taken[_with_weights(SECOND)], taken[_with_weights(FIRST)])
    return [
        timing.target("search step (weights), time x the plain step", ratio(FOLDED, PLAIN), at_most=1.35),
        timing.target("search step (weights), time x torchfm's plain step", ratio(FOLDED, TORCHFM), at_most=0.3),
        timing.target("written-out loops, time x the search step (weights)", ratio(LOOPS, FOLDED), at_least=50),
        timing.target("second-order search, weights + architecture / 10, time x first-order", whole, at_most=3.5),
        timing.target("second-order architecture step alone, time x first-order", ratio(SECOND, FIRST), at_most=3.5),
        timing.target("search, peak memory x plain training's", own, at_most=1.2),
    ]


def table(results: dict[str, Any]) -> str:
    steps = [
        (
            name,
            entry["median"],
            f"{entry['low']:.1f} to {entry['high']:.1f}",
            entry["rounds"],
            entry["ratio"],
            entry["ratio to folded"],
        )
        for name, entry in results["steps"].items()
    ]
    memory = [
        ({"plain": "plain training", "search": "search"}[model], *(entry[key] for key in ("own", "before", "peak")))
        for model, entry in results["memory"].items()
    ]
    return "\n\n".join(
        [
            "## Search",
            results["shape"] + f" Candidates {', '.join(map(str, models.CANDIDATES))}, DeepFM.",
            timing.markdown(("ms of a step", "median", "quartiles", "rounds", "x plain", "x search step"), steps),
            *(f"Not measured: {what}." for what in results["left out"]),
            f"Peak memory of a process that takes {MEMORY_STEPS} steps, the search with one of the architecture:",
            timing.markdown(("MiB", "model and training", "interpreter, torch, data", "all"), memory),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=["plain", "search"], help="report the peak memory of this process instead")
    options = parser.parse_args()
    print(json.dumps(_train(options.memory)) if options.memory else table(run(quick=True)))
