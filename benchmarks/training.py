"""A step of plain DeepFM training here and in other libraries, alone and with each one's own loading.

Wants torchfm, deepctr-torch and fuxictr beside the project's own packages.

    python -m benchmarks.training
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import models, peers, shapes, timing
from pipeline.data.batches import Batches
from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.training.loop import fit
from pipeline.training.weights import LitCTR

OURS = "this project"


def run(quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    schema = shapes.criteo()
    batches = shapes.batches(schema, models.BATCH, 24)
    steps, whole = _steps(schema, batches, quick), _end_to_end(schema, quick)
    shares = whole["shares of a step"]
    return {
        "shape": shapes.describe(schema, batches, models.DIM),
        "steps": steps,
        "end to end": whole,
        "targets": [
            *_targets(steps),
            timing.target("loading, share of a step", shares["loader"], at_most=0.1),
            timing.target("Lightning, added to a step", shares["Lightning"], at_most=0.1),
        ],
    }


def _steps(schema: Schema, batches: list[peers.Batch], quick: bool) -> dict[str, Any]:
    """Peers come in groups of one form, so that few of their tables are in memory at a time; ours is in each."""
    plain = models.plain(schema, models.split(batches))
    optimizers = plain.configure_optimizers()
    found: dict[str, Any] = {}
    for form in ("as it comes", "fused", "sparse"):
        turns: dict[str, Any] = {OURS: lambda i: plain.weight_step(batches[i % len(batches)], optimizers)}
        for make in peers.PEERS:
            peer = make(schema, models.DIM, form)
            prepared = [peer.prepare(batch) for batch in batches]
            turns[peer.name] = lambda i, peer=peer, prepared=prepared: peer.step(prepared[i % len(prepared)])
        taken = timing.interleave(turns, 6 if quick else 15)
        del turns, peer, prepared
        for name, entry in timing.summary(taken, OURS).items():
            found[f"{name}, {form}" if name != OURS else f"{OURS}, beside {form}"] = entry | {
                "samples/s": 1e3 * models.BATCH / entry["median"]
            }
    return found


def _end_to_end(schema: Schema, quick: bool) -> dict[str, Any]:
    """Samples/s of an epoch, from memory-mapped arrays here and through each library's loader there."""
    batches = 40 if quick else 100
    drawn = shapes.batches(schema, models.BATCH, batches)
    ids, labels = (torch.cat(parts).numpy() for parts in zip(*drawn, strict=True))
    few = (4 if quick else 10) * models.BATCH  # rows of a peer's epoch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "ids.npy", ids)
        np.save(folder / "labels.npy", labels.astype(np.uint8))
        rows = Split((np.load(folder / "ids.npy", mmap_mode="r"),), (np.load(folder / "labels.npy", mmap_mode="r"),))
        watched = Split((ids[:2000],), (labels[:2000].astype(np.uint8),))
        module = models.plain(schema, watched)
        turns: dict[str, Any] = {
            "loader alone": lambda i: _load(rows, i),
            "loader and steps": lambda i: _bare(module, rows, i),
            OURS: lambda i: _fit(module, rows, i, folder),
        }
        for make in peers.PEERS:
            peer = make(schema, models.DIM, "as it comes")
            turns[peer.name] = lambda i, peer=peer: peer.epoch(ids[:few], labels[:few], models.BATCH, folder)
        taken = timing.interleave(turns, 3 if quick else 5, warm_up=1)
    per_step = {name: values / (few / models.BATCH if name in _names() else batches) for name, values in taken.items()}
    found = timing.summary(per_step, OURS)
    for entry in found.values():
        entry["samples/s"] = 1e3 * models.BATCH / entry["median"]
    loader, bare = per_step["loader alone"], per_step["loader and steps"]
    found["shares of a step"] = {
        "loader": timing.ratio(loader, bare),
        "Lightning": timing.ratio(per_step[OURS], bare) - 1,
    }
    return found


def _names() -> set[str]:
    return {make.name for make in peers.PEERS}  # type: ignore[attr-defined]


def _load(rows: Split, seed: int) -> None:
    for _ in Batches(rows, models.BATCH, seed=seed):
        pass


def _bare(module: LitCTR, rows: Split, seed: int) -> None:
    optimizers = module.configure_optimizers()
    for batch in Batches(rows, models.BATCH, seed=seed):
        module.weight_step(batch, optimizers)


def _fit(module: LitCTR, rows: Split, seed: int, folder: Path) -> None:
    again = LitCTR(module.model, module.validation, module.planned)
    with contextlib.redirect_stderr(io.StringIO()):
        fit(again, Batches(rows, models.BATCH, seed=seed), 1, "epoch", folder / "none.ckpt", 1e9)


def _targets(steps: dict[str, Any]) -> list[dict[str, Any]]:
    def ratio(name: str) -> float:
        return steps[name]["ratio"]

    as_they_come = {name: entry["ratio"] for name, entry in steps.items() if name.endswith("as it comes")}
    as_they_come.pop(f"{OURS}, beside as it comes")
    better = {
        name: entry["ratio"]
        for name, entry in steps.items()
        if name.endswith(("fused", "sparse")) and not name.startswith(OURS)
    }
    best, best_given = min(as_they_come, key=as_they_come.__getitem__), min(better, key=better.__getitem__)
    return [
        timing.target("plain training, samples/s, x torchfm", ratio("torchfm, as it comes"), at_least=5),
        timing.target(f"plain training, samples/s, x the best peer ({best})", as_they_come[best], at_least=4),
        timing.target(
            f"plain training, samples/s, x the best peer given fused or sparse updates ({best_given})",
            better[best_given],
            at_least=1.0,
        ),
    ]


def table(results: dict[str, Any]) -> str:
    steps = [
        (name, entry["median"], f"{entry['low']:.1f} to {entry['high']:.1f}", entry["samples/s"], entry["ratio"])
        for name, entry in results["steps"].items()
    ]
    whole = [
        (name, entry["median"], f"{entry['low']:.1f} to {entry['high']:.1f}", entry["samples/s"], entry["ratio"])
        for name, entry in results["end to end"].items()
        if name != "shares of a step"
    ]
    shares = results["end to end"]["shares of a step"]
    head = ("ms of a step", "median", "quartiles", "samples/s", "x ours")
    return "\n\n".join(
        [
            "## Plain training",
            results["shape"],
            timing.markdown(head, steps),
            "With each library's own loading, an epoch through its own loop:",
            timing.markdown(head, whole),
            f"The loader takes {shares['loader']:.1%} of a step here, Lightning adds {shares['Lightning']:.1%}.",
        ]
    )


if __name__ == "__main__":
    print(table(run(quick=True)))
