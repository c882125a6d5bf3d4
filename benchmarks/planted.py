"""Are the planted ranks the right dimensions? AUC on `val` of allocations at, below and above them.

Reads ``artifacts/encoded`` of the synthetic data (`dvc repro encode`). One line per allocation: mean and spread over
seeds, and the difference to the planted ranks.

    python -m benchmarks.planted --backbone fm --seeds 3
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np

from stages import _model
from stages._stage import ENCODED


def variants(ranks: dict[str, int], dim: int) -> dict[str, dict[str, int]]:
    """Allocations by name; a field of rank 0 has dimension 1."""
    planted = {name: max(1, rank) for name, rank in ranks.items()}
    found = {"planted": planted}
    for rank in sorted({r for r in planted.values() if r > 1}, reverse=True):
        found[f"rank {rank} halved"] = {name: r // 2 if r == rank else r for name, r in planted.items()}
    found["all doubled"] = {name: min(dim, 2 * r) for name, r in planted.items()}
    found["full"] = dict.fromkeys(planted, dim)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deepfm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.01)
    options = parser.parse_args()
    _model.tune()
    import torch

    from pipeline.allocation.allocation import Allocation
    from pipeline.data.batches import Batches
    from pipeline.data.schema import Schema
    from pipeline.data.split import Split
    from pipeline.embeddings.cost import bytes_per_field
    from pipeline.metrics.auc import auc
    from pipeline.models.model import assemble
    from pipeline.training.loop import fit
    from pipeline.training.weights import LitCTR
    from pipeline.workflow.plug import plug

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    schema = Schema.load(ENCODED / "schema.json")
    facts = json.loads((ENCODED / "schema.json").read_text())["facts"]
    ranks = facts["ranks"] | {copy: facts["ranks"][original] for copy, original in facts["copies"].items()}
    dim, build = max(ranks.values()), plug("methods", "autodim").build
    training, validation = Split.load(ENCODED, "train", "arch"), Split.load(ENCODED, "val")
    planted: list[float] = []
    for name, dims in variants({field: ranks[field] for field in schema.names}, dim).items():
        reached = []
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            backbone = plug("backbones", options.backbone).Backbone
            model = assemble(schema, dim, Allocation("autodim", dims), build, backbone)
            batches = Batches(training, 2000, seed=seed)
            module = LitCTR(model, validation, options.epochs * len(batches), lr=options.lr, patience=2)
            with tempfile.TemporaryDirectory() as folder:
                fit(module, batches, options.epochs, f"{name}, seed {seed}", Path(folder) / "ckpt", 1e9)
            reached.append(max(entry["auc"] for entry in module.history))
        planted = planted or reached
        size = sum(bytes_per_field(build, schema, dims, dim).values())
        mean, spread = np.mean(reached), np.std(reached, ddof=1)
        print(f"{name:16s} {size:9,} bytes  AUC {mean:.4f} ± {spread:.4f}  {mean - np.mean(planted):+.4f}", flush=True)
    oracle = np.load(ENCODED / "val/oracle.npy")
    print(f"{'the truth':16s} {'':15s}  AUC {auc(validation.all_labels(), oracle):.4f}")


if __name__ == "__main__":
    main()
