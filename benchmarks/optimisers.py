"""Do tables learn as well from row-sparse updates as from dense Adam? AUC on MovieLens-1M, paired by seed.

DeepFM on the full tables, trained by the product's own loop with README's settings for MovieLens, as `retrain` does.
Of each seed both arms have the same initial weights, batches and dropout; they differ in the optimiser alone:

* row-sparse: the product's, `RowAdam` on the tables and Adam on the rest;
* dense: Adam on everything. Rows that a batch did not touch move on with their old momentum, and their moments decay.

The epoch is chosen by AUC on ``val``, and its weights are evaluated on ``test``.

    python -m benchmarks.optimisers --full --data ../ml-1m
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks import timing
from pipeline.allocation.evidence import Evidence
from pipeline.data.batches import Batches
from pipeline.data.schema import Schema
from pipeline.data.split import Split
from pipeline.datasets import movielens_1m
from pipeline.encoding.encode import Settings, encode
from pipeline.metrics.auc import auc
from pipeline.metrics.bootstrap import interval
from pipeline.models.model import assemble, predict
from pipeline.sources.raw import write_raw
from pipeline.training.loop import fit
from pipeline.training.weights import LitCTR
from pipeline.workflow.plug import plug

ROOT = Path(__file__).parents[1]
DATA = ROOT / "../ml-1m"
DIM, LR, EPOCHS = 16, 0.003, 8  # README's command for MovieLens-1M
WORSE = 0.0005  # AUC that row-sparse updates may cost at most


class DenseCTR(LitCTR):
    """The same training with dense Adam on all weights."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        adam = torch.optim.Adam(self.weights(), lr=self.lr, fused=True)
        adam.register_step_pre_hook(_densify)
        return [adam]


def _densify(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None and param.grad.is_sparse:
                param.grad = param.grad.to_dense()


ARMS = {"row-sparse": LitCTR, "dense": DenseCTR}


def run(quick: bool, data: Path = DATA) -> dict[str, Any]:
    """Train both arms; quick: two seeds of three epochs, else five of eight.

    Raises:
        FileNotFoundError: if the data are not there.
    """
    if not data.exists():
        raise FileNotFoundError(
            f"no MovieLens-1M at {data}: give the folder or zip as its publisher lays it out "
            f"({movielens_1m.DOWNLOAD['url']}) with --data"
        )
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    with tempfile.TemporaryDirectory() as name:
        encoded = _encoded(data, Path(name), Settings(**params["encode"]))
        seeds, epochs = (range(2), 3) if quick else (range(5), EPOCHS)
        retrain = params["retrain"]
        return compare(encoded, seeds, epochs, batch_size=retrain["batch_size"], patience=retrain["patience"])


def _encoded(data: Path, place: Path, settings: Settings) -> Path:
    raw = place / "raw"
    raw.mkdir()
    record = write_raw(movielens_1m.read(data), raw / "table.parquet")
    (raw / "raw.json").write_text(json.dumps(record))
    encode(raw, place / "encoded", settings)
    return place / "encoded"


def compare(encoded: Path, seeds: Sequence[int], epochs: int, **options: Any) -> dict[str, Any]:
    """Both arms for every seed.

    Returns:
        ``cells``: one entry per seed and arm (`train`). ``arms``: of each arm, and ``differences``: row-sparse minus
        dense by seed; each the `interval` of ``val`` and of ``test`` AUC. ``settings``, ``targets``.
    """
    cells = [
        {"seed": seed, "arm": arm} | train(arm, encoded, seed, epochs, **options) for seed in seeds for arm in ARMS
    ]
    reached = {
        arm: {part: [cell[f"{part} auc"] for cell in cells if cell["arm"] == arm] for part in ("val", "test")}
        for arm in ARMS
    }
    differences = {
        part: interval(np.subtract(reached["row-sparse"][part], reached["dense"][part])) for part in ("val", "test")
    }
    return {
        "settings": {"dim": DIM, "lr": LR, "epochs": epochs, "seeds": list(seeds)} | options,
        "cells": cells,
        "arms": {arm: {part: interval(values) for part, values in parts.items()} for arm, parts in reached.items()},
        "differences": differences,
        "targets": [
            timing.target(
                "row-sparse updates, mean AUC on test minus that of dense Adam",
                differences["test"]["mean"],
                at_least=-WORSE,
            )
        ],
    }


def train(
    arm: str, encoded: Path, seed: int, epochs: int, *, batch_size: int, patience: int | None, lr: float = LR
) -> dict[str, Any]:
    """One training, as `stages.retrain` does it: ``val auc`` of the best epoch, its ``test auc``, and the history."""
    schema = Schema.load(encoded / "schema.json")
    full = plug("methods", "full")
    evidence = Evidence(schema, DIM, ((DIM,),) * len(schema), np.zeros((len(schema), 1), dtype=np.int64), 0)
    torch.manual_seed(seed)
    model = assemble(schema, DIM, full.derive(evidence), full.build, plug("backbones", "deepfm").Backbone)
    batches = Batches(Split.load(encoded, "train", "arch"), batch_size, seed=seed)
    module = ARMS[arm](model, Split.load(encoded, "val"), epochs * len(batches), lr=lr, patience=patience)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # its hints at workers
        fit(module, batches, epochs, f"{arm}, seed {seed}", Path(folder) / "none.ckpt", 1e9)
    seconds = time.perf_counter() - began
    model.load_state_dict(module.best)
    test = Split.load(encoded, "test")
    return {
        "val auc": max(entry["auc"] for entry in module.history),
        "test auc": auc(test.all_labels(), predict(model, test)),
        "history": module.history,
        "steps": module.steps,
        "seconds": seconds,
    }


def table(results: dict[str, Any]) -> str:
    settings, arms, differences = results["settings"], results["arms"], results["differences"]
    rows = [
        (arm, *(f"{parts[part]['mean']:.4f} ± {parts[part]['sd']:.4f}" for part in ("val", "test")))
        for arm, parts in arms.items()
    ]
    between = [
        f"{difference['mean']:+.4f} (95 %: {difference['interval'][0]:+.4f} to {difference['interval'][1]:+.4f})"
        for difference in differences.values()
    ]
    low, high = differences["test"]["interval"]
    return "\n\n".join(
        [
            "## Row-sparse updates beside dense Adam",
            f"MovieLens-1M, DeepFM on the full tables, D = {settings['dim']}, learning rate {settings['lr']}, "
            f"{len(settings['seeds'])} seeds of up to {settings['epochs']} epochs; AUC, mean ± standard deviation:",
            timing.markdown(("optimiser of the tables", "val", "test"), [*rows, ("row-sparse minus dense", *between)]),
            f"The interval of the difference on test {'includes' if low <= 0 <= high else 'does not include'} 0; "
            f"a loss of more than {WORSE} is {'excluded' if low >= -WORSE else 'not excluded by so few seeds'}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="MovieLens-1M, a folder or zip")
    parser.add_argument("--full", action="store_true", help="five seeds of eight epochs, not two of three")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args()
    results = run(not options.full, options.data)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
