"""Are the planted ranks the right dimensions? AUC on `val` of allocations at, below and above the ranks.

Reads ``artifacts/encoded`` of the planted data (`dvc repro encode`), and prints a line for each allocation: bytes, mean
and standard deviation over the seeds, and the difference to the planted ranks.

    python -m benchmarks.planted --backbone fm --seeds 3
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.alone import ROOT
from pipeline.allocation.allocation import Allocation
from pipeline.data.encoded import Encoded
from pipeline.embeddings.cost import spent
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.method import build
from pipeline.experiment.train import train
from pipeline.studies.grid import merged
from pipeline.workflow.params import Params
from pipeline.workflow.places import ENCODED
from pipeline.workflow.validation import validated
from pipeline.workflow.yaml_values import read_yaml

PATIENCE = 2


def variants(ranks: Mapping[str, int], dim: int) -> dict[str, dict[str, int]]:
    """Dimensions of every field, by variant; a field of rank 0 has dimension 1.

    Args:
        ranks: the planted ranks, by field.
        dim: D.
    """
    planted = {name: max(1, rank) for name, rank in ranks.items()}
    found = {"planted": planted}
    for rank in sorted({rank for rank in planted.values() if rank > 1}, reverse=True):
        found[f"rank {rank} halved"] = {name: r // 2 if r == rank else r for name, r in planted.items()}
    found["all doubled"] = {name: min(dim, 2 * rank) for name, rank in planted.items()}
    found["full"] = dict.fromkeys(planted, dim)
    return found


def ranks_of(data: Encoded) -> dict[str, int]:
    """The planted rank of every field; a copy has the rank of its original.

    Raises:
        ValueError: if the data are not planted.
    """
    facts = data.facts
    if "ranks" not in facts:
        raise ValueError(
            f"{data.folder} holds no planted data; set dataset.name in params.yaml to synthetic and run "
            "`dvc repro encode`"
        )
    known = facts["ranks"] | {copy: facts["ranks"][original] for copy, original in facts["copies"].items()}
    return {name: known[name] for name in data.schema.names}


def reached(experiment: Experiment, dims: Mapping[str, int]) -> tuple[list[float], int]:
    """The AUC on ``val`` of the best epoch for each seed, and the bytes of the embedding."""
    allocation = Allocation("autodim", dict(dims))
    aucs = []
    for seed in experiment.params.retrain.seeds:
        with tempfile.TemporaryDirectory() as folder:
            trained = train(experiment, allocation, seed, Path(folder) / "none.ckpt")
        aucs.append(max(entry["auc"] for entry in trained.history))
    return aucs, spent(build, experiment.schema, experiment.dim, allocation).bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deepfm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.01)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    try:
        data = Encoded.load(ROOT / ENCODED)
        ranks = ranks_of(data)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"planted: {error}")
    dim = max(ranks.values())
    retrain = {"seeds": list(range(options.seeds)), "batch_size": 2000, "epochs": options.epochs, "lr": options.lr}
    changes = {
        "dim": dim,
        "backbone": {"name": options.backbone},
        "retrain": {**retrain, "patience": PATIENCE, "weight_decay": 0.0, "checkpoint_seconds": models.NEVER},
    }
    params = validated(Params, merged(read_yaml(ROOT / "params.yaml"), changes), "params.yaml, changed")
    experiment = Experiment(params, data)
    planted: float | None = None
    for name, dims in variants(ranks, dim).items():
        aucs, size = reached(experiment, dims)
        mean, sd = np.mean(aucs), np.std(aucs, ddof=1) if len(aucs) > 1 else np.nan
        planted = float(mean) if planted is None else planted
        print(f"{name:16s} {size:9,} bytes  AUC {mean:.4f} ± {sd:.4f}  {mean - planted:+.4f}", flush=True)
    expected = np.load(ROOT / ENCODED / "val/oracle.npy")
    print(f"{'the truth':16s} {'':15s}  AUC {experiment.task.ceiling(expected, data.split('val')):.4f}")


if __name__ == "__main__":
    main()
