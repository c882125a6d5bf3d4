"""A step of plain DeepFM training here and in other libraries, alone and with each library's own loading."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import models, peers, shapes, timing
from pipeline.data.batches import Batch, Batches
from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.training.loop import fit
from pipeline.training.weights import LitWeights

OURS = "this project"
LOADER, LOADED, SHARES = "loader alone", "loader and steps", "shares of a step"


def run(quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    schema = shapes.criteo()
    batches = shapes.draw_batches(schema, models.BATCH, 24)
    steps, whole = measure_steps(schema, batches, 6 if quick else 15), measure_epochs(schema, quick)
    return {
        "shape": shapes.describe(schema, batches, models.DIM),
        "steps": steps,
        "end to end": whole,
        "targets": [
            *targets(steps),
            timing.target("loading, share of a step", whole[SHARES]["loader"], at_most=0.1),
            timing.target("Lightning, added to a step", whole[SHARES]["Lightning"], at_most=0.1),
        ],
    }


def measure_steps(schema: Schema, batches: Sequence[Batch], rounds: int) -> dict[str, Any]:
    """Steps on prepared batches, by library and form; see `timing.summary`.

    The libraries take turns within one form, so that few of their tables are in memory at a time. The project's own
    step takes part in every form.
    """
    ours = models.weight_steps(models.plain(schema, models.split(batches)), batches)
    found: dict[str, Any] = {}
    for form in peers.FORMS:
        turns = {OURS: ours}
        for peer in peers.PEERS:
            turns[peer.name] = peer(schema, models.DIM, form).steps(batches)
        taken = timing.interleave(turns, rounds)
        del turns
        for name, entry in timing.summary(taken, OURS, len(batches[0].labels)).items():
            found[f"{name}, {form}" if name != OURS else f"{OURS}, beside {form}"] = entry
    return found


def measure_epochs(schema: Schema, quick: bool) -> dict[str, Any]:
    """Steps of an epoch: here from memory-mapped arrays, in other libraries through their own loaders.

    Returns:
        `timing.summary` of each; and under `SHARES` the loader's share of a step, and the share that Lightning adds.
    """
    batches = 40 if quick else 100
    few = 4 if quick else 10  # batches of another library's epoch
    drawn = shapes.draw_batches(schema, models.BATCH, batches)
    ids, labels = (torch.cat(parts).numpy() for parts in zip(*drawn, strict=True))
    rows = few * models.BATCH
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "ids.npy", ids)
        np.save(folder / "labels.npy", labels.astype(np.uint8))
        mapped = Split((np.load(folder / "ids.npy", mmap_mode="r"),), (np.load(folder / "labels.npy", mmap_mode="r"),))
        module = models.plain(schema, Split((ids[:2000],), (labels[:2000].astype(np.uint8),)))
        turns: dict[str, timing.Step] = {
            LOADER: lambda i: _load(mapped, i),
            LOADED: lambda i: _load_and_step(module, mapped, i),
            OURS: lambda i: _fit(module, mapped, i, folder),
        }
        for make in peers.PEERS:
            peer = make(schema, models.DIM, "as it comes")
            turns[peer.name] = partial(_epoch, peer, ids[:rows], labels[:rows], folder)
        taken = timing.interleave(turns, 3 if quick else 5, warm_up=1)
    ours = {LOADER, LOADED, OURS}
    per_step = {name: values / (batches if name in ours else few) for name, values in taken.items()}
    found: dict[str, Any] = timing.summary(per_step, OURS, models.BATCH)
    found[SHARES] = {
        "loader": timing.ratio(per_step[LOADER], per_step[LOADED]),
        "Lightning": timing.ratio(per_step[OURS], per_step[LOADED]) - 1,
    }
    return found


def _epoch(peer: peers.Peer, ids: np.ndarray, labels: np.ndarray, folder: Path, _: int) -> None:
    peer.epoch(ids, labels, models.BATCH, folder)


def _load(rows: Split, seed: int) -> None:
    for _ in Batches(rows, models.BATCH, seed=seed):
        pass


def _load_and_step(module: LitWeights, rows: Split, seed: int) -> None:
    optimizers = module.configure_optimizers()
    for batch in Batches(rows, models.BATCH, seed=seed):
        module.weight_step(batch, optimizers)


def _fit(module: LitWeights, rows: Split, seed: int, folder: Path) -> None:
    again = LitWeights(module.model, module.task, module.validation, module.planned)
    with contextlib.redirect_stderr(io.StringIO()):
        fit(again, Batches(rows, models.BATCH, seed=seed), 1, "epoch", folder / "none.ckpt", models.NEVER)


def targets(steps: dict[str, Any]) -> list[dict[str, Any]]:
    """Targets of the ratios of samples per second to other libraries."""
    ratios = {name: entry["ratio"] for name, entry in steps.items() if not name.startswith(OURS)}
    as_they_come = {name: ratio for name, ratio in ratios.items() if name.endswith("as it comes")}
    better = {name: ratio for name, ratio in ratios.items() if name not in as_they_come}
    best, best_of_better = min(as_they_come, key=as_they_come.__getitem__), min(better, key=better.__getitem__)
    what = "plain training, samples/s, x"
    return [
        timing.target(f"{what} torchfm", ratios["torchfm, as it comes"], at_least=5),
        timing.target(f"{what} the fastest library ({best})", as_they_come[best], at_least=4),
        timing.target(
            f"{what} the fastest library with fused or sparse updates ({best_of_better})",
            better[best_of_better],
            at_least=1.0,
        ),
    ]


def table(results: dict[str, Any]) -> str:
    whole = {name: entry for name, entry in results["end to end"].items() if name != SHARES}
    shares = results["end to end"][SHARES]
    steps_table, whole_table = (
        timing.markdown(
            ("ms of a step", "median", "quartiles", "samples/s", "x ours"),
            [
                (name, entry["median"], timing.low_to_high(entry), entry["samples/s"], entry["ratio"])
                for name, entry in entries.items()
            ],
        )
        for entries in (results["steps"], whole)
    )
    return "\n\n".join(
        [
            "## Plain training",
            results["shape"],
            steps_table,
            "An epoch in each library's own loop, with its own loading:",
            whole_table,
            f"Here the loader takes {shares['loader']:.1%} of a step, and Lightning adds {shares['Lightning']:.1%}.",
        ]
    )
